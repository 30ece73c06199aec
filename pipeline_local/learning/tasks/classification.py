"""Classification: one class per sample, by cross-entropy."""

from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor
from torch.nn import functional

from pipeline_local.learning.tasks.task import IGNORE_LABEL, TASKS, Score, Task, wide


@TASKS.add("classification")
class Classification(Task):
    """One class per sample: logits [B, classes], labels [B] or soft targets [B, classes].

    A sample of the label -100 counts nowhere in evaluations. Heads together sum up their
    log-probabilities.

    Args:
        num_classes: of the data.
        label_shape: (), as a label is the number of a class.
        label_smoothing: part of the target that is spread over all classes (`train.label_smoothing`
            is the usual key for it).
    """

    def __init__(
        self,
        num_classes: int,
        label_shape: tuple[int, ...] = (),
        *,
        label_smoothing: Annotated[float, Field(ge=0, lt=1)] = 0.0,
    ) -> None:
        if label_shape:
            raise ValueError(f"labels are numbers of classes, got labels of shape {label_shape}")
        super().__init__((num_classes,))
        self.label_smoothing = label_smoothing

    def loss(self, outputs: Tensor, labels: Tensor) -> Tensor:
        """Mean cross-entropy."""
        smoothing = self.label_smoothing
        return functional.cross_entropy(wide(outputs), labels, label_smoothing=smoothing)

    def score(self, outputs: Tensor, labels: Tensor) -> Tensor:
        """Part of the batch that is classified as its (largest) label says."""
        truth = labels if labels.dim() == 1 else labels.argmax(1)
        return (outputs.argmax(1) == truth).float().mean()

    def part(self, outputs: Tensor) -> Tensor:
        """A head's log-probabilities [B, classes]. Those of several heads add up."""
        return functional.log_softmax(outputs.float(), dim=1)

    def together(self, summed: Tensor, heads: int) -> Tensor:
        """Log-probabilities [B, classes] of the heads' geometric mean."""
        return (summed / heads).log_softmax(1)

    def evaluate(
        self, outputs: Tensor, summed: Tensor, labels: Tensor, heads: int, samples: int
    ) -> Score:
        """As `Task.evaluate`; without label smoothing, and without labels that are -100.

        Of a subclass with its own loss or score, it is that.
        """
        own = type(self).loss, type(self).score
        if own != (Classification.loss, Classification.score):
            return super().evaluate(outputs, summed, labels, heads, samples)
        loss = functional.cross_entropy(
            wide(outputs), labels, ignore_index=IGNORE_LABEL, reduction="sum"
        )
        right, right_together = ((guess.argmax(1) == labels).sum() for guess in (outputs, summed))
        return Score(loss, right, right_together, (labels != IGNORE_LABEL).sum())

    def example_labels(self, size: int, generator: torch.Generator) -> Tensor:
        """Labels [size] drawn at random."""
        return torch.randint(self.num_outputs, (size,), generator=generator)
