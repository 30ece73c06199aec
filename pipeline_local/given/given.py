"""What a program hands to `fit` in place of names. In the configuration it stands as `given`.

A model, data, a task, an optimizer or a learning-rate schedule of one's own are entries of the
registries like any others. They are there while `handed` lasts, on each rank of the run.
"""

import math
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, fields
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from pipeline_local.config import DataConfig
from pipeline_local.data.datasets import DATA, GivenData
from pipeline_local.data.info import DataInfo
from pipeline_local.engines.optimizer import OPTIMIZERS
from pipeline_local.engines.schedule import SCHEDULES
from pipeline_local.errors import UserError
from pipeline_local.layout import Layout
from pipeline_local.learning.tasks import Task
from pipeline_local.models import given as given_models
from pipeline_local.models.backbone import Backbone
from pipeline_local.models.registry import MODELS
from pipeline_local.user_input.registry import GIVEN
from pipeline_local.user_input.user_code import reason

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
        task: what is learned, in place of a named task.
        loss: in place of the task's own.
        metric: in place of the task's own; any number that is a mean over the batch.
        optimizer: makes an optimizer from a module's parameters.
        schedule: (step, num_steps) -> factor of the learning rate.
    """

    model: given_models.GivenModel
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


def like(model: given_models.GivenModel, info: DataInfo) -> Given:
    """A model in place of the one that was handed in when a run was made, without its data."""
    example = torch.zeros(2, *info.sample_shape, dtype=getattr(torch, info.dtype))
    return Given(model=model, example=as_weights(example, model))


def as_weights(example: Tensor, model: given_models.GivenModel) -> Tensor:
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


def current() -> Given | None:
    """The objects that `given` stands for just now; None where nothing has been handed in."""
    return _GIVEN.get()


def _given(key: str, what: str) -> Any:  # noqa: ANN401 (whatever the program has handed in)
    objects = current()
    found = None if objects is None else getattr(objects, what)
    if found is None:
        raise UserError(
            f"{key}: 'given' stands for an object of a Python program, which is not here; use its"
            f" run there, by fit(...), load(run, model) or Predictor(run, model=...), or train by"
            f" registered names"
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


@OPTIMIZERS.add(GIVEN)
def _optimizer(params: Iterable[nn.Parameter]) -> torch.optim.Optimizer:
    objects = current()
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
