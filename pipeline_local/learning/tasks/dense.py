"""Dense classification: one class per position, such as segmentation."""

from torch import Tensor
from torch.nn import functional

from pipeline_local.learning.tasks.task import IGNORE_LABEL, TASKS, Task, wide


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

    def __init__(
        self, num_classes: int, label_shape: tuple[int, ...], *, ignore: int = IGNORE_LABEL
    ) -> None:
        if len(label_shape) != 2:
            raise ValueError(f"labels are maps [H, W], got labels of shape {label_shape}")
        super().__init__((num_classes, *label_shape), label_shape)
        self.ignore = ignore

    def loss(self, outputs: Tensor, labels: Tensor) -> Tensor:
        """Return the mean cross-entropy over all positions with a class; 0 where there are none."""
        logits = wide(outputs)
        summed = functional.cross_entropy(logits, labels, ignore_index=self.ignore, reduction="sum")
        return summed / (labels != self.ignore).sum().clamp_min(1)

    def score(self, outputs: Tensor, labels: Tensor) -> Tensor:
        """Return the fraction of positions with a class that are classified correctly."""
        right = (outputs.argmax(1) == labels).sum()
        return right / (labels != self.ignore).sum().clamp_min(1)

    def part(self, outputs: Tensor) -> Tensor:
        """Return a head's log-probabilities [B, classes, H, W]."""
        return functional.log_softmax(outputs.float(), dim=1)
