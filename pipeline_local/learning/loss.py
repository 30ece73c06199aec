"""The local loss, and how a head is scored."""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

IGNORE = -100
"""Label of a padding sample: it counts nowhere."""


@dataclass(frozen=True)
class Score:
    """Evaluation of one head on one batch: sums, so that batches add up; scalars."""

    loss: Tensor
    correct: Tensor
    count: Tensor


def local_loss(logits: Tensor, labels: Tensor, label_smoothing: float = 0.0) -> Tensor:
    """Mean cross-entropy of logits [B, classes] and labels [B] or soft targets [B, classes]."""
    return functional.cross_entropy(_wide(logits), labels, label_smoothing=label_smoothing)


def accuracy(logits: Tensor, labels: Tensor) -> Tensor:
    """Part of the batch that is classified as its (largest) label says."""
    truth = labels if labels.dim() == 1 else labels.argmax(1)
    return (logits.argmax(1) == truth).float().mean()


def score(logits: Tensor, labels: Tensor) -> Score:
    """Of logits [B, classes] on integer labels [B], some of which may be `IGNORE`."""
    loss = functional.cross_entropy(_wide(logits), labels, ignore_index=IGNORE, reduction="sum")
    return Score(loss, (logits.argmax(1) == labels).sum(), (labels != IGNORE).sum())


def _wide(logits: Tensor) -> Tensor:
    """At least float32."""
    return logits.float() if logits.dtype == torch.bfloat16 else logits
