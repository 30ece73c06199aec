"""The seam for what is learned: a task is the loss, the score, and what outputs and labels are."""

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from pipeline_local.registry import Registry, reason

IGNORE_LABEL = -100
"""Integer label of what counts nowhere, such as padding; torch's own."""


@dataclass(frozen=True)
class Score:
    """Evaluation of one head on one batch: sums over samples, so that batches add up; scalars.

    Attributes:
        loss: of this head.
        score: the task's metric, of this head.
        ensemble: the metric of the heads so far together, this one among them.
        count: samples.
    """

    loss: Tensor
    score: Tensor
    ensemble: Tensor
    count: Tensor


class Task(ABC):
    """What every module of a run learns from its local loss.

    A task of one's own inherits, and defines `loss` and `score`. The constructor of an entry of
    `TASKS` gets `num_classes` and `label_shape` from the data; its further parameters are options.

    Args:
        output_shape: of a head's output for one sample; its first axis is the classes or values.
        label_shape: of one sample's label.
        label_dtype: of labels.
    """

    metric = "accuracy"
    """Name of the score, in metrics and summaries."""
    better: Literal["higher", "lower"] = "higher"
    """Which scores are better."""
    percent = True
    """Scores are parts of one, which people read in percent."""

    def __init__(
        self,
        output_shape: tuple[int, ...],
        label_shape: tuple[int, ...] = (),
        label_dtype: torch.dtype = torch.int64,
    ) -> None:
        self.output_shape = output_shape
        self.label_shape = label_shape
        self.label_dtype = label_dtype

    @property
    def num_outputs(self) -> int:
        """What a model is asked for as `num_classes`."""
        return self.output_shape[0]

    @abstractmethod
    def loss(self, outputs: Tensor, labels: Tensor) -> Tensor:
        """The local loss, a mean over the batch: outputs [B, ...], labels [B, ...] -> scalar."""

    @abstractmethod
    def score(self, outputs: Tensor, labels: Tensor) -> Tensor:
        """The metric, a mean over the batch: outputs [B, ...], labels [B, ...] -> scalar."""

    def score_text(self, score: float, digits: int = 2) -> str:
        """A score for people: in percent with so many digits, or to the same precision as it is."""
        return f"{score:.{digits}%}" if self.percent else f"{score:.{digits + 2}f}"

    def part(self, outputs: Tensor) -> Tensor:
        """What one head adds to the heads together: float32, shaped like the outputs."""
        return outputs.float()

    def together(self, summed: Tensor, heads: int) -> Tensor:
        """The output of several heads together, from the sum of their parts."""
        return summed / heads

    def evaluate(
        self, outputs: Tensor, summed: Tensor, labels: Tensor, heads: int, samples: int
    ) -> Score:
        """Score a test batch.

        Args:
            outputs: of this head [B, ...].
            summed: parts of this head and all above, added up.
            labels: [B, ...].
            heads: so many have been added up.
            samples: the first so many are no padding.
        """
        outputs, labels = outputs[:samples], labels[:samples]
        ensemble = self.together(summed, heads)[:samples]
        return Score(
            loss=self.loss(outputs, labels) * samples,
            score=self.score(outputs, labels) * samples,
            ensemble=self.score(ensemble, labels) * samples,
            count=torch.tensor(samples, device=outputs.device),
        )

    def example_labels(self, size: int, generator: torch.Generator) -> Tensor:
        """Labels [size, ...] drawn at random, on the CPU, for measurements without data."""
        if self.label_dtype.is_floating_point:
            return torch.rand(size, *self.label_shape, generator=generator, dtype=self.label_dtype)
        shape = (size, *self.label_shape)
        return torch.randint(self.num_outputs, shape, generator=generator, dtype=self.label_dtype)


def check(task: Task) -> None:
    """Try loss and score of a user's own task on outputs that are all zero.

    Raises:
        ValueError: one of them fails or is no scalar, or the loss has no gradient.
    """
    labels = task.example_labels(2, torch.Generator())
    outputs = torch.zeros(2, *task.output_shape, requires_grad=True)
    for what, function in (("loss", task.loss), ("score", task.score)):
        try:
            value = function(outputs, labels)
        except Exception as error:  # the user's own code
            raise ValueError(f"its {what} fails: {reason(error)}") from error
        if not isinstance(value, Tensor) or value.dim():
            got = list(value.shape) if isinstance(value, Tensor) else type(value).__name__
            raise ValueError(
                f"its {what} must be a scalar tensor, a mean over the batch, got {got}"
            )
        if what == "loss" and not value.requires_grad:
            raise ValueError("its loss does not depend on the outputs")


TASKS: Registry[Callable[..., Task]] = Registry(
    "task.name", kind="task", given=("num_classes", "label_shape")
)
"""All tasks, by name (`task.name`)."""


def wide(outputs: Tensor) -> Tensor:
    """The same numbers in at least float32: a loss in bfloat16 would be too coarse."""
    return outputs.float() if outputs.dtype in (torch.bfloat16, torch.float16) else outputs
