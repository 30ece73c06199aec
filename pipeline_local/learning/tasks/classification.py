"""Classification: one class per sample, by cross-entropy."""

from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor
from torch.nn import functional

from pipeline_local.engines.gradients import at_least_float32
from pipeline_local.layout import IGNORE_LABEL
from pipeline_local.learning.tasks.task import (
    TASKS,
    Score,
    Task,
    divergence_of_classes,
    refuse_beyond,
    refuse_fractions,
)


@TASKS.add("classification")
class Classification(Task):
    """One class per sample: logits [B, classes], labels [B] or soft targets [B, classes].

    Samples with the label -100 are ignored in evaluations. Heads together sum their
    log-probabilities.

    Args:
        num_classes: number of classes of the data.
        label_shape: (), as a label is one class index.
        label_smoothing: fraction of the target that is spread over all classes; the usual key for
            it is `train.label_smoothing`.
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
        """Return the mean cross-entropy, a scalar."""
        logits, smoothing = at_least_float32(outputs), self.label_smoothing
        return functional.cross_entropy(logits, labels, label_smoothing=smoothing)

    def score(self, outputs: Tensor, labels: Tensor) -> Tensor:
        """Return the fraction of samples that are classified as their (largest) label."""
        truth = labels if labels.dim() == 1 else labels.argmax(1)
        return (outputs.argmax(1) == truth).float().mean()

    def part(self, outputs: Tensor) -> Tensor:
        """Return a head's log-probabilities [B, classes]; those of several heads are summed."""
        return functional.log_softmax(outputs.float(), dim=1)

    def together(self, summed: Tensor, heads: int) -> Tensor:
        """Return the log-probabilities [B, classes] of the heads' geometric mean."""
        return (summed / heads).log_softmax(1)

    def divergence(self, outputs: Tensor, teacher: Tensor, temperature: float) -> Tensor:
        """Return the mean KL divergence of a head's classes from the teacher's."""
        return divergence_of_classes(outputs, teacher, temperature)

    def evaluate(
        self, outputs: Tensor, summed: Tensor, labels: Tensor, heads: int, samples: int
    ) -> Score:
        """Score a test batch as `Task.evaluate` does; ignore label smoothing and labels of -100.

        A subclass with a loss or score of its own is scored by that.
        """
        own = type(self).loss, type(self).score
        if own != (Classification.loss, Classification.score):
            return super().evaluate(outputs, summed, labels, heads, samples)
        loss = functional.cross_entropy(
            at_least_float32(outputs), labels, ignore_index=IGNORE_LABEL, reduction="sum"
        )
        right, right_together = ((guess.argmax(1) == labels).sum() for guess in (outputs, summed))
        return Score(loss, right, right_together, (labels != IGNORE_LABEL).sum())

    def accept(self, labels: Tensor) -> Tensor:
        """Convert labels like `Task.accept`, and check that they are classes."""
        refuse_fractions(labels, "classification")
        refuse_beyond(labels, self.num_outputs, IGNORE_LABEL)
        return labels.to(self.label_dtype)

    def example_labels(self, size: int, generator: torch.Generator) -> Tensor:
        """Return random labels [size]."""
        return torch.randint(self.num_outputs, (size,), generator=generator)
