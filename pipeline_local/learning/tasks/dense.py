"""Dense classification: one class per position, such as segmentation."""

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


@TASKS.add("dense")
class Dense(Task):
    """One class per position: logits [B, classes, H, W], labels [B, H, W].

    The loss is cross-entropy, the score the fraction of correct positions. Positions with the label
    `ignore` are ignored. Heads together sum their log-probabilities.

    Args:
        num_classes: number of classes of the data.
        label_shape: (H, W).
        ignore: label of positions without a class (255 in Pascal VOC and Cityscapes).
    """

    adds_up = True

    def __init__(
        self, num_classes: int, label_shape: tuple[int, ...], *, ignore: int = IGNORE_LABEL
    ) -> None:
        if len(label_shape) != 2:
            raise ValueError(f"labels are maps [H, W], got labels of shape {label_shape}")
        super().__init__((num_classes, *label_shape), label_shape)
        self.ignore = ignore

    def loss(self, outputs: Tensor, labels: Tensor) -> Tensor:
        """Return the mean cross-entropy over all positions with a class; 0 where there are none."""
        return self._summed_loss(outputs, labels) / self._count(labels).clamp_min(1)

    def score(self, outputs: Tensor, labels: Tensor) -> Tensor:
        """Return the fraction of positions with a class that are classified correctly."""
        return self._right(outputs, labels) / self._count(labels).clamp_min(1)

    def part(self, outputs: Tensor) -> Tensor:
        """Return a head's log-probabilities [B, classes, H, W]."""
        return functional.log_softmax(outputs.float(), dim=1)

    def divergence(self, outputs: Tensor, teacher: Tensor, temperature: float) -> Tensor:
        """Return the mean KL divergence over all positions, also those without a class."""
        return divergence_of_classes(outputs, teacher, temperature)

    def evaluate(
        self, outputs: Tensor, summed: Tensor, labels: Tensor, heads: int, samples: int
    ) -> Score:
        """Score a test batch like `Task.evaluate`, but weigh all positions with a class alike."""
        outputs, summed, labels = outputs[:samples], summed[:samples], labels[:samples]
        return Score(
            loss=self._summed_loss(outputs, labels),
            score=self._right(outputs, labels),
            ensemble=self._right(summed, labels),
            count=self._count(labels),
        )

    def accept(self, labels: Tensor) -> Tensor:
        """Convert labels like `Task.accept`, and check that they are classes or `ignore`.

        -100 stands for `ignore`, too.
        """
        refuse_fractions(labels, "dense")
        refuse_beyond(labels, self.num_outputs, self.ignore)
        return labels.to(self.label_dtype).masked_fill(labels == IGNORE_LABEL, self.ignore)

    def _summed_loss(self, outputs: Tensor, labels: Tensor) -> Tensor:
        logits = at_least_float32(outputs)
        return functional.cross_entropy(logits, labels, ignore_index=self.ignore, reduction="sum")

    def _right(self, outputs: Tensor, labels: Tensor) -> Tensor:
        return ((outputs.argmax(1) == labels) & (labels != self.ignore)).sum()

    def _count(self, labels: Tensor) -> Tensor:
        return (labels != self.ignore).sum()
