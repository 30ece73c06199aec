"""The interface of tasks: the loss, the score, and the shapes of outputs and labels."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from pipeline_local.engines.gradients import at_least_float32
from pipeline_local.errors import UserError, counted
from pipeline_local.layout import IGNORE_LABEL
from pipeline_local.user_input.registry import Registry
from pipeline_local.user_input.user_code import reason

Reader = Callable[[Tensor], Any]
"""Runs a head: activations [B, ...] -> what a task's loss takes."""


@dataclass(frozen=True)
class Score:
    """The evaluation of one head on one batch: scalars, summed over samples so that batches add up.

    Attributes:
        loss: loss of this head.
        score: the task's metric of this head.
        ensemble: the task's metric of all heads up to this one together.
        count: number of samples.
        others: further metrics of this head, by name.
    """

    loss: Tensor
    score: Tensor
    ensemble: Tensor
    count: Tensor
    others: Mapping[str, Tensor] = field(default_factory=dict)


class Task(ABC):
    """The base class of tasks: what every module of a run learns.

    A subclass defines `loss` and `score`. The constructor of an entry of `TASKS` gets `num_classes`
    and `label_shape` from the data; its other parameters are options.

    Args:
        output_shape: shape of one sample's output; the first axis has the classes or values.
        label_shape: shape of one sample's label.
        label_dtype: dtype of labels.

    Example:
        >>> class Distance(Task):
        ...     def loss(self, outputs, labels):
        ...         return (outputs - labels).abs().mean()
        ...
        ...     def score(self, outputs, labels):
        ...         return -self.loss(outputs, labels)
        >>> Distance((1,)).loss(torch.zeros(4, 1), torch.ones(4, 1))
        tensor(1.)
    """

    metric = "accuracy"
    """Name of the score in metrics and summaries."""
    better: Literal["higher", "lower"] = "higher"
    """Whether higher or lower scores are better."""
    percent = True
    """Whether scores are fractions that are displayed in percent."""
    differentiates_twice = False
    """Whether a loss is differentiated more than once, as by the estimator `exact` and by
    `diagnose`: then it may not take a way that allows it only once."""
    predicts = True
    """Whether heads together predict without labels, as `Predictor` does."""
    tokens: int = 0
    """The number of tokens of a sample, in which rates are displayed; 0: in samples."""
    shown: tuple[str, ...] = ()
    """The names of further metrics (`measures`) for the table of results."""
    adds_up = False
    """Whether the scores of the parts of a test batch add up to those of the whole; then no outputs
    of whole batches are kept."""

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
        """The number of outputs that a model is built with (`num_classes`)."""
        return self.output_shape[0]

    @abstractmethod
    def loss(self, outputs: Tensor, labels: Tensor) -> Tensor:
        """Return the local loss, a mean over the batch: outputs and labels [B, ...] -> scalar."""

    @abstractmethod
    def score(self, outputs: Tensor, labels: Tensor) -> Tensor:
        """Return the metric, a mean over the batch: outputs and labels [B, ...] -> scalar."""

    def score_text(self, score: float, digits: int = 2) -> str:
        """A score for people: in percent with so many digits, or to the same precision as it is."""
        return f"{score:.{digits}%}" if self.percent else f"{score:.{digits + 2}f}"

    @property
    def part_shape(self) -> tuple[int, ...]:
        """The shape of one sample's summand in the sum of all heads (`part`)."""
        return self.output_shape

    def reader(self, head: nn.Module) -> Reader:
        """Return what runs a head on activations [B, ...] and gives what `loss`, `score` and
        `judge` take. A module asks once, when it is made."""
        return head.__call__

    def judge(self, outputs: Any, labels: Tensor | None) -> Tensor:  # noqa: ANN401 (as `Reader`)
        """Return what `part` and `evaluate` take.

        Args:
            outputs: of a head on test activations, as its `reader` gives them.
            labels: of the same samples; None in a prediction.
        """
        judged: Tensor = outputs
        return judged

    def rate_text(self, samples_per_second: float) -> str:
        """A rate for people, in samples or tokens per second."""
        unit = "tokens" if self.tokens else "samples"
        return f"{samples_per_second * (self.tokens or 1):.0f} {unit}/s"

    def part(self, outputs: Tensor) -> Tensor:
        """Return one head's summand in the sum of all heads: float32, shaped like the outputs."""
        return outputs.float()

    def together(self, summed: Tensor, heads: int) -> Tensor:
        """Return the joint output of several heads from the sum of their parts."""
        return summed / heads

    divergence: Callable[[Any, Tensor, float], Tensor] | None = None
    """A method that returns how far outputs are from a teacher's, a mean over the batch; None where
    outputs are not probabilities.

    Args:
        outputs: outputs of a head [B, ...].
        teacher: the joint output of other heads, as `together` returns it; no gradient flows into
            it.
        temperature: what logits of both are divided by; the result is multiplied by its square, so
            that its gradient is of the same size at any temperature (Hinton et al., 2015).
    """

    def evaluate(
        self, outputs: Tensor, summed: Tensor, labels: Tensor, heads: int, samples: int
    ) -> Score:
        """Score a test batch.

        Args:
            outputs: outputs of this head [B, ...].
            summed: sum of the parts of this head and all upstream heads.
            labels: labels [B, ...].
            heads: number of heads in the sum.
            samples: number of samples that are not padding, from the first; 0: a replica has none.
        """
        if not samples:  # the mean of nothing is NaN
            nothing = torch.zeros((), device=outputs.device)
            return Score(nothing, nothing, nothing, nothing)
        outputs, labels = outputs[:samples], labels[:samples]
        ensemble = self.together(summed, heads)[:samples]
        return Score(
            loss=self.loss(outputs, labels) * samples,
            score=self.score(outputs, labels) * samples,
            ensemble=self.score(ensemble, labels) * samples,
            count=torch.tensor(samples, device=outputs.device),
        )

    def measures(self, means: Mapping[str, float]) -> dict[str, float]:
        """Return the metrics of a test set by name, from the means of `Score`'s attributes."""
        return {
            self.metric: means["score"],
            f"ensemble_{self.metric}": means["ensemble"],
            "loss": means["loss"],
        }

    def accept(self, labels: Tensor) -> Tensor:
        """Labels [B, ...] of a program's own data, on the CPU, as this task takes them.

        Raises:
            UserError: one of them is beyond the outputs.
        """
        return labels.to(self.label_dtype)

    def example_labels(self, size: int, generator: torch.Generator) -> Tensor:
        """Return random labels [size, ...] on the CPU, for measurements without data."""
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
"""The registry of all tasks, by name (`task.name`)."""


def refuse_fractions(labels: Tensor, task: str) -> None:
    """Labels that are numbers of classes are no floating-point ones: nobody knows what 0.7 means.

    Raises:
        UserError: they are.
    """
    if labels.is_floating_point():
        raise UserError(
            f"labels of {task} are whole numbers: got {labels.dtype}; convert them, or choose"
            f" another task (task.name)"
        )


def refuse_beyond(labels: Tensor, num_classes: int, ignore: int) -> None:
    """Labels must be numbers of classes: a loss on a GPU would end the process without a reason.

    Raises:
        UserError: one is not.
    """
    beyond = (labels < 0) | (labels >= num_classes)
    odd = labels[beyond & (labels != ignore) & (labels != IGNORE_LABEL)]
    if len(odd):
        raise UserError(
            f"labels must be from 0 to {num_classes - 1}, as the model has"
            f" {counted(num_classes, 'output')}: got {int(odd[0])}; number the classes from 0, or"
            f" give the model more outputs"
        )


def divergence_of_classes(outputs: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """Return KL(teacher || outputs) as `Task.divergence` says: logits [B, classes, ...] of both, a
    mean over samples and positions."""
    own, wanted = (at_least_float32(x).div(temperature).log_softmax(1) for x in (outputs, teacher))
    each = functional.kl_div(own, wanted, reduction="none", log_target=True).sum(1)
    return each.mean() * temperature**2
