"""Multi-label classification: any number of classes per sample."""

import torch
from torch import Tensor
from torch.nn import functional

from pipeline_local.engines.gradients import at_least_float32
from pipeline_local.errors import UserError
from pipeline_local.layout import IGNORE_LABEL
from pipeline_local.learning.tasks.task import TASKS, Task


@TASKS.add("multi_label")
class MultiLabel(Task):
    """Any number of classes per sample: logits [B, classes], labels [B, classes] from 0 to 1.

    The loss is binary cross-entropy, the score the fraction of correct labels. Heads together
    predict the mean of their logits.

    Args:
        num_classes: number of classes of the data.
        label_shape: (classes,).
    """

    def __init__(self, num_classes: int, label_shape: tuple[int, ...]) -> None:
        if len(label_shape) != 1:
            raise ValueError(f"labels are vectors of 0 and 1, got labels of shape {label_shape}")
        super().__init__(label_shape, label_shape, torch.float32)

    def loss(self, outputs: Tensor, labels: Tensor) -> Tensor:
        """Return the mean binary cross-entropy over all labels."""
        logits = at_least_float32(outputs)
        return functional.binary_cross_entropy_with_logits(logits, labels.to(logits.dtype))

    def score(self, outputs: Tensor, labels: Tensor) -> Tensor:
        """Return the fraction of labels whose logit has the correct sign."""
        return ((outputs > 0) == (labels > 0.5)).float().mean()

    def accept(self, labels: Tensor) -> Tensor:
        """Convert labels like `Task.accept`, and check that they are from 0 to 1.

        What fills up a test batch is not: -100 or NaN in a whole row.
        """
        found = labels.to(self.label_dtype)
        odd = ~((found >= 0) & (found <= 1))
        odd &= ~((found == IGNORE_LABEL) | found.isnan()).all(1, keepdim=True)
        if odd.any():
            raise UserError(
                f"labels of multi_label are from 0 to 1: got {found[odd][0]:g}; correct them, or"
                f" choose another task (task.name)"
            )
        return found

    def divergence(self, outputs: Tensor, teacher: Tensor, temperature: float) -> Tensor:
        """Return the mean KL divergence over all labels, each of which is true or not."""
        own, wanted = (at_least_float32(x) / temperature for x in (outputs, teacher))
        truth = wanted.sigmoid()
        cross, least = (
            functional.binary_cross_entropy_with_logits(x, truth.to(x.dtype)) for x in (own, wanted)
        )
        return (cross - least) * temperature**2
