"""A module's body and head without learning: evaluation and prediction."""

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from pipeline_local import seeds
from pipeline_local.learning.compiler import eagerly
from pipeline_local.learning.precision import autocast
from pipeline_local.learning.rules import Rules
from pipeline_local.learning.tasks import Score
from pipeline_local.side_effects.untouched import evaluating


class Inference(nn.Module):
    """The body and the head of a module: what it computes without learning.

    Args:
        index: k, counted from 0.
        body: maps activations [B, ...] to activations [B, ...].
        head: maps activations [B, ...] to outputs [B, ...].
        rules: the settings that all modules of a run share.
    """

    def __init__(self, index: int, body: nn.Module, head: nn.Module, rules: Rules) -> None:
        super().__init__()
        self.index = index
        self.body = body
        self.head = head
        self.rules = rules
        self.read = rules.task.reader(head)

    @torch.no_grad()
    def evaluate(
        self,
        x: Tensor,
        summed: Tensor | None = None,
        samples: int | None = None,
        number: int = 0,
        labels: Tensor | None = None,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Run body and head on test samples; the module is in evaluation mode.

        The network sees no padding, as its outputs may depend on all samples.

        Args:
            x: input [B, ...].
            summed: sum of the parts of all upstream heads (`Task.part`); None: there are none.
            samples: number of samples that are not padding, from the first; None: all.
            number: of these samples among all of an evaluation, for what is drawn in it.
            labels: labels [B, ...], where the task judges outputs by them.

        Returns:
            Activations [B, ...], the head's outputs (`Task.judge`), and the sum with this head's
            part; zeros where there is padding.
        """
        size, count = len(x), len(x) if samples is None else samples
        seeds.reseed(x.device, self.rules.seed, "evaluate", self.index, number)
        # one odd batch is not worth another graph
        with eagerly(self) if count < size else nullcontext():
            upstream = None if summed is None else summed[:count]
            known = None if labels is None else labels[:count]
            results = self._predict(x[:count], upstream, known)
        activations, outputs, summed = (_padded(result, size) for result in results)
        return activations, outputs, summed

    @torch.no_grad()
    def score(self, outputs: Tensor, summed: Tensor, labels: Tensor, samples: int) -> Score:
        """Score the head on a test batch, alone and together with all upstream heads, from what
        `evaluate` has returned; `samples` of it, from the first, are not padding."""
        return self.rules.task.evaluate(outputs, summed, labels, self.index + 1, samples)

    @torch.no_grad()
    def predict(
        self, x: Tensor, summed: Tensor | None = None, labels: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Return activations and the sum with this head's part, as `evaluate` does."""
        with evaluating(self):
            y, _, summed = self._predict(x, summed, labels)
        return y, summed

    @torch.no_grad()
    def activations(self, x: Tensor) -> Tensor:
        """Return the activations alone, as `predict` does, for a head that is not asked."""
        with evaluating(self.body), self._autocast(x):
            return self._laid_out(self.body(x))

    @torch.no_grad()
    def answers(self, y: Tensor) -> Any:  # noqa: ANN401 (whatever the task reads)
        """Return what the head says about activations, as it is read in evaluation."""
        with evaluating(self.head), self._autocast(y):
            return self.read(y)

    def _predict(
        self, x: Tensor, summed: Tensor | None, labels: Tensor | None
    ) -> tuple[Tensor, Tensor, Tensor]:
        with self._autocast(x):
            y = self._laid_out(self.body(x))
            outputs = self.rules.task.judge(self.read(y), labels)
        part = self.rules.task.part(outputs)
        return y, outputs, part if summed is None else summed + part

    def _laid_out(self, y: Tensor) -> Tensor:
        """The body's output in the dtype and strides that it has on every placement."""
        wire_format = self.rules.wire_format
        return wire_format.laid_out(y.to(wire_format.inside))

    def _autocast(self, x: Tensor) -> AbstractContextManager[None]:
        return autocast(x.device.type, self.rules.wire_format.networks)


def _padded(tensor: Tensor, size: int) -> Tensor:
    """A tensor of fewer samples, filled up with zeros to this size."""
    if len(tensor) == size:
        return tensor
    return torch.cat([tensor, tensor.new_zeros(size - len(tensor), *tensor.shape[1:])])
