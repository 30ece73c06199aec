"""The local loss, and how a head is scored."""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

IGNORE = -100
"""Label of a padding sample: it counts nowhere."""


@dataclass(frozen=True)
class Score:
    """Evaluation of one head on one batch: sums, so that batches add up; scalars.

    Attributes:
        loss: of this head.
        correct: samples that it classifies right.
        ensemble: samples that the heads so far, this one among them, classify right together.
        count: samples.
    """

    loss: Tensor
    correct: Tensor
    ensemble: Tensor
    count: Tensor


def local_loss(logits: Tensor, labels: Tensor, label_smoothing: float = 0.0) -> Tensor:
    """Mean cross-entropy of logits [B, classes] and labels [B] or soft targets [B, classes]."""
    return functional.cross_entropy(_wide(logits), labels, label_smoothing=label_smoothing)


def accuracy(logits: Tensor, labels: Tensor) -> Tensor:
    """Part of the batch that is classified as its (largest) label says."""
    truth = labels if labels.dim() == 1 else labels.argmax(1)
    return (logits.argmax(1) == truth).float().mean()


def vote(logits: Tensor) -> Tensor:
    """A head's log-probabilities [B, classes]. Those of several heads add up to an ensemble's."""
    return functional.log_softmax(logits.float(), dim=1)


def score(logits: Tensor, votes: Tensor, labels: Tensor) -> Score:
    """Of a head's logits and the heads' summed votes on integer labels [B], some of them `IGNORE`.

    Args:
        logits: [B, classes].
        votes: [B, classes].
        labels: [B].
    """
    loss = functional.cross_entropy(_wide(logits), labels, ignore_index=IGNORE, reduction="sum")
    correct, ensemble = (_correct(guess, labels) for guess in (logits, votes))
    return Score(loss, correct, ensemble, (labels != IGNORE).sum())


def _correct(guess: Tensor, labels: Tensor) -> Tensor:
    return (guess.argmax(1) == labels).sum()


def _wide(logits: Tensor) -> Tensor:
    """At least float32."""
    return logits.float() if logits.dtype == torch.bfloat16 else logits
