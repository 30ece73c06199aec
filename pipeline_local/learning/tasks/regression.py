"""Regression: one or several numbers per sample."""

import math
from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional

from pipeline_local.engines.gradients import at_least_float32
from pipeline_local.learning.tasks.task import TASKS, Task

_LOSSES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "mse": functional.mse_loss,
    "l1": functional.l1_loss,
    "huber": functional.huber_loss,
}


@TASKS.add("regression")
class Regression(Task):
    """D numbers per sample: outputs [B, D], labels [B] or [B, ...] with D numbers each.

    The score is the mean absolute error. Heads together predict the mean of their outputs.

    Args:
        num_classes: number of classes of the data; unused.
        label_shape: shape of one sample's label.
        loss: mse, l1 or huber (with delta 1).
    """

    metric = "mean_absolute_error"
    better = "lower"
    percent = False

    def __init__(
        self,
        num_classes: int,
        label_shape: tuple[int, ...] = (),
        *,
        loss: Literal["mse", "l1", "huber"] = "mse",
    ) -> None:
        super().__init__((math.prod(label_shape),), label_shape, torch.float32)
        self._loss = _LOSSES[loss]

    def loss(self, outputs: Tensor, labels: Tensor) -> Tensor:
        """Return the chosen loss, a mean over all numbers."""
        return self._loss(at_least_float32(outputs), self._like(outputs, labels))

    def score(self, outputs: Tensor, labels: Tensor) -> Tensor:
        """Return the mean absolute error over all numbers."""
        return functional.l1_loss(at_least_float32(outputs), self._like(outputs, labels))

    def _like(self, outputs: Tensor, labels: Tensor) -> Tensor:
        """Labels [B, D], as [B] and [B, 1] would broadcast to [B, B]."""
        return labels.reshape(outputs.shape).to(at_least_float32(outputs).dtype)
