"""A trial step of every module: what cannot be trained shows before anything is spent.

On fake tensors of the true sizes, which cost neither memory nor compute. Where a step fails on
them, a real one decides, as blocks may ask for values, which fake tensors do not have.
"""

import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch._subclasses import fake_tensor

from pipeline_local.blueprint.blueprint import Blueprint
from pipeline_local.blueprint.contract import Spec
from pipeline_local.config import Config
from pipeline_local.engines import gradients
from pipeline_local.engines.optimizer import OPTIMIZERS
from pipeline_local.errors import UserError
from pipeline_local.learning.estimators import ESTIMATORS
from pipeline_local.learning.heads import HEADS
from pipeline_local.learning.information import INFORMATION
from pipeline_local.learning.module import LocalModule
from pipeline_local.learning.step import Step
from pipeline_local.learning.tasks import TASKS
from pipeline_local.memory.dry_run import FAKE_DEVICE, fill_queues, heaviest, never
from pipeline_local.memory.fake_edges import fake_message
from pipeline_local.memory.fake_mode import fake_mode, made_up_values
from pipeline_local.memory.part_checks import (
    REENTRANT,
    CheckedPart,
    RefusedError,
    Watch,
    check_kinds,
    model_key,
    parts_of,
)
from pipeline_local.models.registry import MODELS
from pipeline_local.user_input.registry import GIVEN, Registry
from pipeline_local.user_input.user_code import reason

_NO_VALUES = (
    fake_tensor.DataDependentOutputException,
    fake_tensor.DynamicOutputShapeException,
    fake_tensor.UnsupportedFakeTensorException,
    fake_tensor.UnsupportedOperatorException,
    NotImplementedError,
)
"""What fake tensors raise where real ones may do."""

NUM_REAL_STEPS = 4
"""Real steps of a module whose way through depends on random numbers."""


def check(blueprint: Blueprint) -> None:
    """Tries one training step of every module: all acts, second pass and update included.

    What comes with this package is known to take one, from two samples on, and is not tried.

    Raises:
        UserError: a block or head cannot be trained, or behaves otherwise than in evaluation; it is
            named, with the key to change.
    """
    if blueprint.module_specs(0).labels.shape[0] > 1 and _comes_with_us(blueprint.config):
        return
    for index in range(len(blueprint.modules)):
        check_kinds(blueprint, index)
        size = blueprint.module_specs(index).labels.shape[0]
        on_fakes = _failure(blueprint, index, size, fake=True)
        if on_fakes is None:
            continue
        failure = _failure(blueprint, index, min(size, 2), fake=False)
        if (failure is None) != on_fakes.needs_values and size > 2:
            failure = _failure(blueprint, index, size, fake=False)
        if failure is not None and not isinstance(failure.error, NotImplementedError):
            raise UserError(failure.line(blueprint, index, size)) from failure.error


def _comes_with_us(config: Config) -> bool:
    """Whether all that a module is made of does."""
    chosen: list[tuple[Registry[Any], str]] = [
        (MODELS, config.model.name),
        (HEADS, config.head.name),
        (TASKS, config.task.name),
        (ESTIMATORS, config.reconcile.estimator),
        (OPTIMIZERS, config.optimizer.name),
    ]
    if config.information.name is not None:
        chosen.append((INFORMATION, config.information.name))
    return all(registry.comes_with_us(name) for registry, name in chosen)


@dataclass(frozen=True)
class _Failure:
    """Why a step has failed, and in which part; None where it is none alone."""

    error: Exception
    part: CheckedPart | None

    @property
    def needs_values(self) -> bool:
        """Whether it may be the fault of fake tensors."""
        text = str(self.error)
        return isinstance(self.error, _NO_VALUES) or "Fake" in text or "meta" in text

    def line(self, blueprint: Blueprint, index: int, size: int) -> str:
        """What is wrong, in which part, and what to do."""
        if isinstance(self.error, UserError):
            return str(self.error)
        names = ", ".join(block.name for block in blueprint.blocks(index))
        label = self.part.label if self.part else f"module {index + 1} ({names})"
        key = self.part.key if self.part else model_key(blueprint)
        if isinstance(self.error, RefusedError):
            return f"{key}: {label} {self.error}"
        config = blueprint.config
        sizes = f"data.batch_size={config.data.batch_size}"
        sizes += f" and train.microbatches={config.train.microbatches}"
        todo = f"fix it or change {key}"
        if size == 1 and not key.startswith("optimizer"):
            todo = f"raise data.batch_size, lower train.microbatches, or change {key}"
        return (
            f"{key}: {label} fails in a training step with {sizes} ({reason(self.error)}); {todo}"
        )


def _optimizer(config: Config, module: LocalModule) -> CheckedPart:
    """What runs in an update."""
    name = config.optimizer.name
    key = "optimizer" if name == GIVEN else "optimizer.name"
    return CheckedPart(f"the optimizer {name}", key, module, None)


def _estimator(config: Config, module: LocalModule) -> CheckedPart | None:
    """A user's own, if the module has one: it is to blame where no part fails by itself."""
    name = config.reconcile.estimator
    if not config.reconcile.weight or ESTIMATORS.comes_with_us(name):
        return None
    return CheckedPart(f"the estimator {name}", "reconcile.estimator", module, None)


def _failure(blueprint: Blueprint, index: int, size: int, fake: bool) -> _Failure | None:
    """Makes a module and runs its step with so many samples; says what has failed."""
    with _quiet(), fake_mode() if fake else torch.device("cpu"):
        if fake:
            module = blueprint.fake_module(index, FAKE_DEVICE)
        else:
            module = blueprint.uncompiled(index, FAKE_DEVICE)
        module.guard.is_refused = never
        parts = parts_of(blueprint, index, [*module.body.children(), module.head])
        watch = Watch(parts)
        try:
            for number in range(1 if fake else NUM_REAL_STEPS):
                step = _try_acts(blueprint, module, size, number, fake)
                watch.now = _optimizer(blueprint.config, module)
                with made_up_values():
                    module.update(step)
                watch.now = None
        except Exception as error:  # the user's own code
            part = watch.now or _culprit(parts, blueprint, index, size)
            return _Failure(error, part or _estimator(blueprint.config, module))
    return None


@contextmanager
def _quiet() -> Iterator[None]:
    """The run says what there is to say; it finds the generators as they were."""
    with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def _try_acts(
    blueprint: Blueprint, module: LocalModule, size: int, number: int, fake: bool
) -> Step:
    """Runs a step up to its update; returns it."""
    specs, index = blueprint.module_specs(module.index), module.index
    step = replace(heaviest(blueprint), microbatches=1)
    if number:
        step = Step(step.number + number, step.lr, reconcile=step.reconcile, compare=True, log=True)
    x = _like(specs.x, size)
    labels = _labels(blueprint, specs.labels, size, fake)
    module.eval()
    module.predict(x, labels=labels)
    module.train()
    if number == 0:
        fill_queues(blueprint, module, step, size, fake_message if fake else _values)
    module(x, labels, step)
    module.signal()
    module.receive(_like(specs.x, size) if index else None)
    module.learn()
    if module.lagged.expects(step, 0):
        module.apply_lagged(step, 0, *_arrived(blueprint, index, step, size))
    if any(parameter.grad is not None for parameter in module.parameters()):
        raise RefusedError(REENTRANT)
    return step


def _arrived(blueprint: Blueprint, index: int, step: Step, size: int) -> list[Tensor]:
    """A lagged message for a module, of zeros."""
    specs = blueprint.lagged_specs(index + 1, size)
    contents = blueprint.run_plan.lag.applied(index, step.number, 0, step.microbatches)
    message = (spec for content in contents for spec in specs.get(content, ()))
    return [torch.zeros(spec.shape, dtype=spec.dtype) for spec in message]


def _like(spec: Spec, *size: int) -> Tensor:
    shape = (*size, *spec.shape[1:])
    if spec.dtype.is_floating_point:
        return torch.randn(shape, dtype=spec.dtype)
    return torch.zeros(shape, dtype=spec.dtype)


def _values(specs: Sequence[Spec]) -> tuple[Tensor, ...]:
    """What a real step finds in its queues: memory as it was would name classes that are none."""
    return tuple(_like(spec, *spec.shape[:1]) for spec in specs)


def _labels(blueprint: Blueprint, spec: Spec, size: int, fake: bool) -> Tensor:
    if fake or spec.dtype.is_floating_point:
        return torch.ones((size, *spec.shape[1:]), dtype=spec.dtype)
    return blueprint.task.example_labels(size, torch.Generator())


def _culprit(
    parts: Sequence[CheckedPart], blueprint: Blueprint, index: int, size: int
) -> CheckedPart | None:
    """The first part whose own backward pass fails."""
    specs = blueprint.module_specs(index)
    blocks = [blueprint.output_shapes[i] for i in blueprint.modules[index]]
    shapes = [specs.x.shape[1:], *blocks, blocks[-1]]  # head and term read the same
    for number, (part, shape) in enumerate(zip(parts, shapes, strict=False)):
        x = _like(Spec((size, *shape), specs.x.dtype if number == 0 else specs.y.dtype), size)
        x.requires_grad_(x.is_floating_point())
        inputs = [t for t in (x, *part.module.parameters()) if t.requires_grad]
        try:
            y = part.module(x)
            gradients.of(y, inputs, torch.zeros_like(y))
        except Exception:  # the user's own code
            return part
    return None
