"""What a program hands to `fit` in place of names. In the configuration it stands as `given`.

A model, data, a task, an optimizer or a learning-rate schedule of one's own are entries of the
registries like any others. They are there while `handed` lasts, on each rank of the run.
"""

import copy
import math
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, fields
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor, unset_fake_temporarily

from pipeline_local.config import DataConfig
from pipeline_local.data.datasets import DATA, GivenData
from pipeline_local.data.info import DataInfo
from pipeline_local.engines.optimizer import OPTIMIZERS
from pipeline_local.engines.schedule import SCHEDULES
from pipeline_local.errors import UserError
from pipeline_local.layout import Layout
from pipeline_local.learning.tasks import TASKS, Task
from pipeline_local.models import given as given_models
from pipeline_local.models.backbone import Backbone
from pipeline_local.models.registry import MODELS
from pipeline_local.user_input.registry import GIVEN, reason

Loss = Callable[[Tensor, Tensor], Tensor]
"""Outputs [B, ...] and labels [B, ...] -> scalar, a mean over the batch."""


_OF_A_LINE = (
    *("event", "step", "epoch", "time", "stage", "replica", "modules", "module", "lr"),
    *("samples_per_second", "waiting_up", "waiting_down", "seconds", "memory_bytes"),
    *("skipped_images", "mfu", "gpu_memory_bytes", "gpu_utilization_percent", "gpu_power_watts"),
    *("gpu_temperature_celsius", "gpu_throttling"),
    *(f"gpu_{w}_{d}_bytes_per_second" for w in ("pcie", "nvlink") for d in ("sent", "received")),
)
_OF_A_MODULE = (
    *("loss", "information", "discord", "cosine", "input_norm", "signal_norm", "divergence"),
    *("feedback_cosine", "gradient_norm", "skipped_updates"),
)
_OF_A_SUMMARY = (
    *("steps", "resumed_after", "efficiency", "peak_memory_bytes", "memory_of", "predicts"),
    *("checkpoint_stall_seconds", "stage_seconds", "predicted_stage_seconds", "tokens_per_second"),
)
TAKEN = frozenset((*_OF_A_LINE, *_OF_A_MODULE, *_OF_A_SUMMARY))
"""What metrics and summaries hold beside a task's score, which has another name."""


@dataclass(frozen=True)
class Given:
    """The objects of one program.

    Attributes:
        model: an `nn.Module`, or its blocks in order with the classifier last.
        example: inputs [B, ...] that it takes.
        layout: of its activations; None: found by watching the layers.
        data: both splits; None where nothing is read.
        task: what is learned, in place of a named task.
        loss: in place of the task's own.
        metric: in place of the task's own; any number that is a mean over the batch.
        optimizer: makes an optimizer from a module's parameters.
        schedule: (step, num_steps) -> factor of the learning rate.
    """

    model: given_models.Given
    example: Tensor
    layout: Layout | None = None
    data: GivenData | None = None
    task: Task | None = None
    loss: Loss | None = None
    metric: Callable[[Tensor, Tensor], Any] | None = None
    optimizer: Callable[[Iterable[nn.Parameter]], torch.optim.Optimizer] | None = None
    schedule: Callable[[int, int], float] | None = None

    @cached_property
    def backbone(self) -> Backbone:
        """The model, cut into blocks that carry its weights."""
        return given_models.backbone(self.model, self.example, self.layout)

    @cached_property
    def output_shape(self) -> tuple[int, ...]:
        """The model's output for one sample."""
        return given_models.output_shape(self.backbone, self.example)

    def __getstate__(self) -> dict[str, Any]:
        """Without what is cached: each rank cuts the model itself."""
        return {each.name: getattr(self, each.name) for each in fields(self)}


def like(model: given_models.Given, info: DataInfo) -> Given:
    """A model in place of the one that was handed in when a run was made, without its data."""
    example = torch.zeros(2, *info.sample_shape, dtype=getattr(torch, info.dtype))
    return Given(model=model, example=as_weights(example, model))


def as_weights(example: Tensor, model: given_models.Given) -> Tensor:
    """Numbers in the precision of the model; whole numbers stay."""
    weights = given_models.network_of(model)[0].parameters()
    dtype = next((p.dtype for p in weights if p.is_floating_point()), torch.float32)
    return example.to(dtype) if example.is_floating_point() else example


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
            f"{key}: got 'given', which stands for an object of a Python program; call fit(...),"
            f" load(run, model) or Predictor(run, model=...) there, or name a registered one"
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
        return getattr(_given("data.name", "data"), split).samples

    def run_data(self, _: DataConfig) -> GivenData:
        """What was handed in."""
        data: GivenData = _given("data.name", "data")
        return data


DATA.add(GIVEN, _Data())


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
    objects: Given | None = _GIVEN.get()
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


@OPTIMIZERS.add(GIVEN)
def _optimizer(params: Iterable[nn.Parameter]) -> torch.optim.Optimizer:
    objects = _GIVEN.get()
    if objects is not None and objects.optimizer is None:  # only weights are loaded
        return torch.optim.SGD(params, lr=0.0)
    return optimizer_of(_given("optimizer.name", "optimizer"), params)


def optimizer_of(
    make: Callable[[Iterable[nn.Parameter]], Any], params: Iterable[nn.Parameter]
) -> torch.optim.Optimizer:
    """The optimizer that a program makes of parameters.

    Raises:
        UserError: it fails, or makes something else.
    """
    try:
        made = make(params)
    except Exception as error:  # the program's own code
        raise UserError(
            f"optimizer: cannot be made of the parameters of a module ({reason(error)}); fix it"
        ) from error
    if not isinstance(made, torch.optim.Optimizer):
        raise UserError(
            f"optimizer: must return a torch optimizer of the parameters that it gets, got"
            f" {type(made).__name__}; return one"
        )
    return made


@SCHEDULES.add(GIVEN)
def _schedule(step: int, num_steps: int) -> float:
    schedule = _given("optimizer.schedule", "schedule")
    try:
        factor = float(schedule(step, num_steps))
    except Exception as error:  # the program's own code
        raise UserError(
            f"schedule: fails for step {step} of {num_steps} ({reason(error)}); fix it"
        ) from error
    if not 0 <= factor < math.inf:
        raise UserError(
            f"schedule: must give a factor of the rate, from 0 on, got {factor} for step {step} of"
            f" {num_steps}; fix it"
        )
    return factor
