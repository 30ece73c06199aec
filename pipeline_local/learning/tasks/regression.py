"""Regression: one or several numbers per sample."""

import math
from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional

from pipeline_local.learning.tasks.task import TASKS, Task, wide

_LOSSES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "mse": functional.mse_loss,
    "l1": functional.l1_loss,
    "huber": functional.huber_loss,
}


@TASKS.add("regression")
class Regression(Task):
    """Numbers: outputs [B, D], labels [B] or [B, ...] with D numbers per sample.

    The score is the mean absolute error. Heads together give the mean of their outputs.

    Args:
        num_classes: of the data; not needed.
        label_shape: of one sample's label.
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
        """The chosen loss, a mean over all numbers."""
        return self._loss(wide(outputs), self._like(outputs, labels))

    def score(self, outputs: Tensor, labels: Tensor) -> Tensor:
        """Mean absolute error over all numbers."""
        return functional.l1_loss(wide(outputs), self._like(outputs, labels))

    def _like(self, outputs: Tensor, labels: Tensor) -> Tensor:
        """Labels [B, D]: [B] against [B, 1] would be compared each with each."""
        return labels.reshape(outputs.shape).to(wide(outputs).dtype)
