"""Next-token prediction: the task of language models, without ever holding all logits."""

import math
from collections.abc import Iterator, Mapping
from functools import partial
from typing import Annotated, NamedTuple, Protocol, runtime_checkable

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from pipeline_local.engines.gradients import at_least_float32
from pipeline_local.errors import UserError
from pipeline_local.layout import IGNORE_LABEL
from pipeline_local.learning.tasks.task import (
    TASKS,
    Reader,
    Score,
    Task,
    refuse_beyond,
)


class Logits(NamedTuple):
    """Logits [B, T, V] that are not computed yet: `hidden @ weight.T`.

    They are the memory peak of a language model, once for each head: so losses and scores compute
    them a few tokens at a time.

    Attributes:
        hidden: [B, T, d].
        weight: the unembedding matrix [V, d].
    """

    hidden: Tensor
    weight: Tensor

    def detach(self) -> "Logits":
        """Return the same logits without a graph."""
        return Logits(self.hidden.detach(), self.weight.detach())


@runtime_checkable
class HasHidden(Protocol):
    """A head that tells its last hidden state from its logits `hidden @ weight.T`."""

    weight: Tensor
    """The unembedding matrix [V, d]."""

    def hidden(self, x: Tensor) -> Tensor:
        """Return the last hidden state [B, T, d] for activations [B, T, d]."""
        ...


@TASKS.add("next_token")
class NextToken(Task):
    """The next token at each position: logits [B, T, V], labels [B, T]; -100 is ignored.

    The loss is the mean cross-entropy of all tokens, in nats; the score is the perplexity. Heads
    together predict the mean of their probabilities, of which only that of the correct token is
    needed, and sent downstream: [B, T], never [B, T, V].

    Args:
        num_classes: size of the vocabulary, V.
        label_shape: (T,), the length of a sequence.
        bytes_per_token: of the test text, for the bits per byte; None: unknown.
        label_smoothing: fraction of the target that is spread over the vocabulary in training; the
            usual key for it is `train.label_smoothing`.
    """

    metric = "perplexity"
    better = "lower"
    percent = False
    predicts = False
    shown = ("accuracy", "bits_per_byte")
    adds_up = True

    def __init__(
        self,
        num_classes: int,
        label_shape: tuple[int, ...],
        *,
        bytes_per_token: float | None = None,
        label_smoothing: Annotated[float, Field(ge=0, lt=1)] = 0.0,
    ) -> None:
        if len(label_shape) != 1:
            raise ValueError(f"labels are tokens [T], got labels of shape {label_shape}")
        super().__init__((*label_shape, num_classes), label_shape)
        self.bytes_per_token = bytes_per_token
        self.label_smoothing = label_smoothing
        (self.tokens,) = label_shape

    @property
    def num_outputs(self) -> int:
        """The size of the vocabulary."""
        return self.output_shape[-1]

    @property
    def part_shape(self) -> tuple[int, ...]:
        """The shape of one sample's part of the heads together: a number for each token."""
        return self.label_shape

    def reader(self, head: nn.Module) -> Reader:
        """Return what maps activations [B, T, d] to logits: unformed ones if the head offers them,
        and their loss is differentiated once."""
        if not self.differentiates_twice and isinstance(head, HasHidden):
            return partial(_unformed, head)
        return super().reader(head)

    def loss(self, outputs: Tensor | Logits, labels: Tensor) -> Tensor:
        """Return the mean cross-entropy over all labels in nats, a scalar; 0 without labels."""
        return self._mean(outputs, labels, self.label_smoothing)

    def score(self, outputs: Tensor | Logits, labels: Tensor) -> Tensor:
        """Return the perplexity of a batch."""
        with torch.no_grad():
            return self._mean(outputs, labels, 0.0).exp()

    def _mean(self, outputs: Tensor | Logits, labels: Tensor, smoothing: float) -> Tensor:
        tokens = labels.flatten()
        if isinstance(outputs, Logits):
            summed = _linear_cross_entropy(outputs, tokens, smoothing)
        else:
            summed = _cross_entropy(outputs.flatten(0, 1), tokens, smoothing)
        return summed / (tokens != IGNORE_LABEL).sum().clamp_min(1)

    def judge(self, outputs: Tensor | Logits, labels: Tensor | None) -> Tensor:
        """Return [B, T, 2]: the log-probability of each correct token, and 1 where it is the most
        probable one; 0 where the label is -100."""
        assert labels is not None, "heads of a language model are judged by the labels"
        return _judged(outputs, labels)

    def part(self, outputs: Tensor) -> Tensor:
        """Return a head's probability [B, T] of each correct token, from what `judge` gives."""
        return outputs[..., 0].exp().float()

    def evaluate(
        self, outputs: Tensor, summed: Tensor, labels: Tensor, heads: int, samples: int
    ) -> Score:
        """Score a test batch like `Task.evaluate`; sums are over tokens, and scores in nats."""
        log_probability, hit = outputs[:samples].unbind(-1)
        known = labels[:samples] != IGNORE_LABEL
        together = (summed[:samples] / heads).clamp_min(torch.finfo(summed.dtype).tiny).log()
        nats = -log_probability.sum()  # which is 0 at the others
        return Score(
            loss=nats,
            score=nats,
            ensemble=-together.masked_fill(~known, 0).sum(),
            count=known.sum(),
            others={"accuracy": hit.sum()},
        )

    def measures(self, means: Mapping[str, float]) -> dict[str, float]:
        """Return the perplexities of the mean nats, and bits per byte where they are known."""
        loss, ensemble = means["loss"], means["ensemble"]
        found = {
            "perplexity": _exp(loss),
            "ensemble_perplexity": _exp(ensemble),
            "loss": loss,
            "accuracy": means["accuracy"],
        }
        if self.bytes_per_token:
            found["bits_per_byte"] = loss / math.log(2) / self.bytes_per_token
        return found

    def accept(self, labels: Tensor) -> Tensor:
        """Convert labels like `Task.accept`, and check that they are tokens of the vocabulary."""
        if labels.is_floating_point():
            raise UserError(f"labels of next_token are ids of tokens: got {labels.dtype}")
        refuse_beyond(labels, self.num_outputs, IGNORE_LABEL)
        return labels.to(self.label_dtype)


def _unformed(head: HasHidden, y: Tensor) -> Logits:
    return Logits(head.hidden(y), head.weight)


def _linear_cross_entropy(logits: Logits, labels: Tensor, smoothing: float) -> Tensor:
    """The sum of logits that are formed and dropped a few tokens at a time."""
    hidden = logits.hidden.flatten(0, 1)
    weight = logits.weight.to(hidden.dtype)
    if _is_fused(hidden) and not smoothing:  # it takes none in chunks
        return functional.linear_cross_entropy(
            hidden, weight, labels, reduction="sum", options=nn.LinearCrossEntropyOptions()
        )
    summed = hidden.new_zeros((), dtype=at_least_float32(hidden[:0]).dtype)
    for part, wanted in _chunks(hidden, labels, len(weight)):
        summed = summed + checkpoint(_of_part, part, weight, wanted, smoothing, use_reentrant=False)
    return summed


def _is_fused(hidden: Tensor) -> bool:
    """Whether torch's own forms a sum over these tokens [N, d]. It adds up in the dtype of
    `hidden`, so in bfloat16 and float16 it would be some percent off, or end at 65504; a score
    needs no gradient."""
    return _FUSED and at_least_float32(hidden[:0]).dtype == hidden.dtype and torch.is_grad_enabled()


def _of_part(hidden: Tensor, weight: Tensor, labels: Tensor, smoothing: float) -> Tensor:
    return _cross_entropy(hidden @ weight.T, labels, smoothing)


def _cross_entropy(logits: Tensor, labels: Tensor, smoothing: float) -> Tensor:
    return functional.cross_entropy(
        at_least_float32(logits),
        labels,
        ignore_index=IGNORE_LABEL,
        label_smoothing=smoothing,
        reduction="sum",
    )


def _judged(outputs: Tensor | Logits, labels: Tensor) -> Tensor:
    """Log-probabilities of the labels and whether each is the most probable: [B, T, 2]."""
    size = len(outputs.weight) if isinstance(outputs, Logits) else outputs.shape[-1]
    source = outputs.hidden if isinstance(outputs, Logits) else outputs
    found = []
    for part, wanted in _chunks(source.flatten(0, 1), labels.flatten(), size):
        if isinstance(outputs, Logits):
            part = part @ outputs.weight.to(part.dtype).T
        logits, ignored = at_least_float32(part), wanted == IGNORE_LABEL
        correct = logits.gather(1, wanted.masked_fill(ignored, 0)[:, None])[:, 0]
        judged = [correct - logits.logsumexp(1), (logits.argmax(1) == wanted).to(logits.dtype)]
        found.append(torch.stack(judged, dim=1).masked_fill(ignored[:, None], 0))
    return torch.cat(found).view(*labels.shape, 2)


def _chunks(hidden: Tensor, labels: Tensor, size: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Tokens in parts of about 4 million logits."""
    tokens = max(1, _MOST_LOGITS // size)
    yield from zip(torch.split(hidden, tokens), torch.split(labels, tokens), strict=True)


_MOST_LOGITS = 2**22
"""16 MiB of float32: large enough for full speed, small beside a model's activations."""

_FUSED = hasattr(nn, "LinearCrossEntropyOptions")
"""Torch's own from 2.14 on. It forms gradients in the forward pass, and so no logits twice."""


def _exp(nats: float) -> float:
    """A perplexity; infinite rather than an error where a run diverges."""
    return math.exp(nats) if nats < 700 else math.inf
