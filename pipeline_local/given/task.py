"""The task `given`: a program's own, or another one with its own loss or metric."""

import copy
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor, unset_fake_temporarily

from pipeline_local.errors import UserError
from pipeline_local.given.given import Loss, current
from pipeline_local.given.metric_names import TAKEN
from pipeline_local.learning.tasks import TASKS, Task
from pipeline_local.user_input.registry import GIVEN


class GivenTask(Task):
    """A task with a program's own loss, and its own metric or another one.

    Args:
        base: says what labels are, and how heads are put together; None: labels are whole numbers
            of any shape, and heads together give the mean of their outputs.
        output_shape: the model's for one sample; with a loss of its own it may be any.
        label_shape: of one sample's label.
        loss: its own; None: that of `base`.
        metric: its own; None: that of `base`, if it takes such outputs, else the loss.
    """

    def __init__(
        self,
        base: Task | None,
        output_shape: tuple[int, ...],
        label_shape: tuple[int, ...],
        loss: Loss | None,
        metric: Callable[..., Any] | None,
    ) -> None:
        super().__init__(output_shape, label_shape, base.label_dtype if base else torch.int64)
        usual = base is not None and base.output_shape == base.part_shape == output_shape
        self._base = base if usual else None
        self._own_loss, self._score = loss, metric or (self._base.score if self._base else loss)
        if metric is not None or self._base is None:
            self.metric, self.percent = _name(metric or loss), False
        else:
            self.metric, self.percent = self._base.metric, self._base.percent
        self.better = base.better if base and (metric or self._base) else "lower"

    def loss(self, outputs: Tensor, labels: Tensor) -> Tensor:
        """The program's own, or that of the base."""
        if self._own_loss is None:
            assert self._base is not None, "one of them has a loss"
            return self._base.loss(outputs, labels)
        own = self._own_loss
        if isinstance(own, nn.Module):  # perhaps with weights of classes
            with unset_fake_temporarily():  # it stays real
                own = copy.deepcopy(own) if isinstance(outputs, FakeTensor) else own
                own = own.to(outputs.device)
        return own(outputs, labels)

    def score(self, outputs: Tensor, labels: Tensor) -> Tensor:
        """The program's own, or that of the base."""
        assert self._score is not None, "one of them has a score"
        return torch.as_tensor(self._score(outputs, labels), device=outputs.device)

    def part(self, outputs: Tensor) -> Tensor:
        """As the base."""
        return self._base.part(outputs) if self._base else super().part(outputs)

    def together(self, summed: Tensor, heads: int) -> Tensor:
        """As the base."""
        return self._base.together(summed, heads) if self._base else super().together(summed, heads)

    def accept(self, labels: Tensor) -> Tensor:
        """As the base, unless the loss is the program's own: it may take any."""
        if self._own_loss is None and self._base is not None:
            return self._base.accept(labels)
        return super().accept(labels)


def _name(function: Callable[..., Any] | None) -> str:
    """Of a metric in tables and summaries, in which other names are taken already."""
    name = getattr(function, "__name__", type(function).__name__)
    return name if name.isidentifier() and name not in TAKEN else "metric"


@TASKS.add(GIVEN)
def _task(
    *,
    num_classes: int,
    label_shape: tuple[int, ...],
    label_smoothing: float = 0.0,
    base: str = "classification",
    options: dict[str, Any] | None = None,
) -> Task:
    """A program's own task, or another one with its own loss or metric."""
    objects = current()
    own = objects is not None and (objects.task is not None or objects.loss is not None)
    if own and label_smoothing:
        raise UserError(
            f"train.label_smoothing: {label_smoothing} changes nothing, as the program's own loss"
            f" does not get it; smooth labels there, and leave it out"
        )
    if objects is not None and objects.task is not None:
        return objects.task
    known = TASKS.options(base, options or {}, {"label_smoothing": label_smoothing})
    task: Task | None = None
    try:
        task = TASKS.find(base)(num_classes=num_classes, label_shape=label_shape, **known)
    except ValueError:
        if objects is None or (objects.loss is None and objects.metric is not None):
            raise
    if objects is None:
        assert task is not None
        return task
    takes_any = objects.loss is not None or objects.metric is None
    outputs = objects.output_shape if task is None or takes_any else task.output_shape
    return GivenTask(task, outputs, label_shape, objects.loss, objects.metric)
