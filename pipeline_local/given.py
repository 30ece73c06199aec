"""What a program hands to `fit` in place of names. In the configuration it stands as `given`.

A model, data, a task, an optimizer or a learning-rate schedule of one's own are entries of the
registries like any others. They are there while `handed` lasts, on each rank of the run.
"""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from pipeline_local.data.datasets import DATA, GivenData
from pipeline_local.errors import UserError
from pipeline_local.layout import Layout
from pipeline_local.learning.optimizer import OPTIMIZERS
from pipeline_local.learning.schedule import SCHEDULES
from pipeline_local.learning.tasks import TASKS, Task
from pipeline_local.models import given as given_models
from pipeline_local.models.backbone import Backbone
from pipeline_local.models.registry import MODELS
from pipeline_local.registry import GIVEN

Loss = Callable[[Tensor, Tensor], Tensor]
"""Outputs [B, ...] and labels [B, ...] -> scalar, a mean over the batch."""


@dataclass(frozen=True)
class Given:
    """The objects of one program.

    Attributes:
        model: an `nn.Module`, or its blocks in order with the classifier last.
        example: inputs [B, ...] that it takes.
        layout: of its activations; None: found by watching the layers.
        data: both splits; None where nothing is read.
        loss: in place of the task's own.
        metric: in place of the task's own; any number that is a mean over the batch.
        optimizer: makes an optimizer from a module's parameters.
        schedule: (step, num_steps) -> factor of the learning rate.
    """

    model: given_models.Given
    example: Tensor
    layout: Layout | None = None
    data: GivenData | None = None
    loss: Loss | None = None
    metric: Callable[[Tensor, Tensor], Any] | None = None
    optimizer: Callable[[Iterable[nn.Parameter]], torch.optim.Optimizer] | None = None
    schedule: Callable[[int, int], float] | None = None

    @cached_property
    def backbone(self) -> Backbone:
        """The model, cut into blocks that carry its weights."""
        return given_models.backbone(self.model, self.example, self.layout)


_GIVEN: ContextVar[Given | None] = ContextVar("given", default=None)


@contextmanager
def handed(objects: Given) -> Iterator[None]:
    """The name `given` stands for these objects meanwhile."""
    token = _GIVEN.set(objects)
    try:
        yield
    finally:
        _GIVEN.reset(token)


def _given(key: str, what: str) -> Any:  # noqa: ANN401 (whatever the program has handed in)
    objects = _GIVEN.get()
    found = None if objects is None else getattr(objects, what)
    if found is None:
        raise UserError(
            f"{key}: got 'given', which stands for an object of a Python program; call fit(...) or"
            f" load(run, model) there, or name a registered one"
        )
    return found


@MODELS.add(GIVEN)
def _model(*, num_classes: int, image_shape: tuple[int, ...]) -> Backbone:
    with torch.device("cpu"):
        backbone: Backbone = _given("model.name", "backbone")
        return backbone


class _Data:
    """The entry of `DATA`: gives its own `RunData` instead of opening images."""

    __module__ = __name__

    def __call__(self, root: object, split: str) -> Any:  # noqa: ANN401
        """A split, as it was handed in."""
        return getattr(self.run_data(), split).samples

    def run_data(self) -> GivenData:
        """What was handed in."""
        data: GivenData = _given("data.name", "data")
        return data


DATA.add(GIVEN, _Data())


class GivenTask(Task):
    """A task with a program's own loss, and its own metric or another task's.

    Args:
        base: says what labels are, and how heads are put together.
        loss: its own.
        metric: its own; None: that of `base`.
    """

    def __init__(self, base: Task, loss: Loss, metric: Callable[..., Any] | None) -> None:
        super().__init__(base.output_shape, base.label_shape, base.label_dtype)
        self._base, self._loss, self._score = base, loss, metric or base.score
        self.metric = getattr(metric, "__name__", "metric") if metric else base.metric
        self.better = base.better
        self.percent = base.percent and metric is None

    def loss(self, outputs: Tensor, labels: Tensor) -> Tensor:
        """The program's own."""
        return self._loss(outputs, labels)

    def score(self, outputs: Tensor, labels: Tensor) -> Tensor:
        """The program's own, or that of the base."""
        return torch.as_tensor(self._score(outputs, labels), device=outputs.device)

    def part(self, outputs: Tensor) -> Tensor:
        """As the base."""
        return self._base.part(outputs)

    def together(self, summed: Tensor, heads: int) -> Tensor:
        """As the base."""
        return self._base.together(summed, heads)


@TASKS.add(GIVEN)
def _task(
    *,
    num_classes: int,
    label_shape: tuple[int, ...],
    base: str = "classification",
    options: dict[str, Any] | None = None,
) -> Task:
    """Another task with a program's own loss or metric, where that is at hand."""
    known = TASKS.options(base, options or {})
    task = TASKS.find(base)(num_classes=num_classes, label_shape=label_shape, **known)
    objects = _GIVEN.get()
    if objects is None or (objects.loss is None and objects.metric is None):
        return task
    return GivenTask(task, objects.loss or task.loss, objects.metric)


@OPTIMIZERS.add(GIVEN)
def _optimizer(params: Iterable[nn.Parameter]) -> torch.optim.Optimizer:
    made: torch.optim.Optimizer = _given("optimizer.name", "optimizer")(params)
    return made


@SCHEDULES.add(GIVEN)
def _schedule(step: int, num_steps: int) -> float:
    return float(_given("optimizer.schedule", "schedule")(step, num_steps))
