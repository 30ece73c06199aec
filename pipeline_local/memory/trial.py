"""A trial step of every module: what cannot be trained shows before anything is spent.

On fake tensors of the true sizes, which cost neither memory nor compute. Where a step fails on
them, a real one decides, as blocks may ask for values, which fake tensors do not have.
"""

import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses import fake_tensor

from pipeline_local.blueprint.blueprint import Blueprint
from pipeline_local.blueprint.contract import Spec
from pipeline_local.config import Config
from pipeline_local.engines import gradients
from pipeline_local.engines.optimizer import OPTIMIZERS
from pipeline_local.errors import UserError
from pipeline_local.learning.estimators import ESTIMATORS
from pipeline_local.learning.heads import HEADS
from pipeline_local.learning.information import INFORMATION, term_of
from pipeline_local.learning.module import LocalModule
from pipeline_local.learning.step import Step
from pipeline_local.learning.tasks import TASKS
from pipeline_local.memory.dry_run import FAKE_DEVICE, fill_queues, heaviest, never
from pipeline_local.memory.fake_mode import fake_mode, made_up_values
from pipeline_local.models.registry import MODELS
from pipeline_local.record.sealed import DTYPES
from pipeline_local.user_input.registry import GIVEN, Registry, reason

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
        _check_kinds(blueprint, index)
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
class _Part:
    """A block or a head.

    Attributes:
        label: for people.
        key: of the configuration, which chose it.
        module: it.
        shape: of its output for one sample, in evaluation; None: any.
    """

    label: str
    key: str
    module: nn.Module
    shape: tuple[int, ...] | None


class _RefusedError(Exception):
    """What a part gives cannot be trained."""


@dataclass(frozen=True)
class _Failure:
    """Why a step has failed, and in which part; None where it is none alone."""

    error: Exception
    part: _Part | None

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
        key = self.part.key if self.part else _model_key(blueprint)
        if isinstance(self.error, _RefusedError):
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


def _model_key(blueprint: Blueprint) -> str:
    return "model" if blueprint.config.model.name == GIVEN else "model.name"


def _parts(blueprint: Blueprint, index: int, held: Sequence[nn.Module]) -> list[_Part]:
    """The blocks of a module, and its head; `held` has them in this order."""
    key, output_shape = _model_key(blueprint), blueprint.task.output_shape
    blocks = [
        _Part(f"block {blueprint.backbone.blocks[i].name!r}", key, part, blueprint.output_shapes[i])
        for i, part in zip(blueprint.modules[index], held, strict=False)
    ]
    if blueprint.is_last(index):
        name = blueprint.backbone.classifier.name
        return [*blocks, _Part(f"block {name!r}", key, held[-1], output_shape)]
    label = f"the {blueprint.config.head.name} head of module {index + 1}"
    head = _Part(label, "head.name", held[-1], output_shape)
    if (term := term_of(held[-1])) is None:
        return [*blocks, head]
    label = f"the {blueprint.config.information.name} term of module {index + 1}"
    return [*blocks, head, _Part(label, "information.name", term, None)]


def _optimizer(config: Config, module: LocalModule) -> _Part:
    """What runs in an update."""
    name = config.optimizer.name
    key = "optimizer" if name == GIVEN else "optimizer.name"
    return _Part(f"the optimizer {name}", key, module, None)


def _estimator(config: Config, module: LocalModule) -> _Part | None:
    """A user's own, if the module has one: it is to blame where no part fails by itself."""
    name = config.reconcile.estimator
    if not config.reconcile.weight or ESTIMATORS.comes_with_us(name):
        return None
    return _Part(f"the estimator {name}", "reconcile.estimator", module, None)


def _check_kinds(blueprint: Blueprint, index: int) -> None:
    """Gradients and optimizers are for real and dense numbers, and so are checkpoints."""
    meta = [*blueprint.meta_body(index), blueprint.meta_head(index)]
    for part in _parts(blueprint, index, meta):
        for name, parameter in part.module.named_parameters():
            if parameter.is_complex():
                raise UserError(
                    f"{part.key}: {part.label} has a parameter of {parameter.dtype} ({name}), and"
                    f" optimizers take real ones; hold torch.view_as_real of it, and use"
                    f" torch.view_as_complex in forward"
                )
        for name, layer in part.module.named_modules():
            is_table = isinstance(layer, (nn.Embedding, nn.EmbeddingBag))
            if is_table and layer.sparse and layer.weight.requires_grad:
                raise UserError(
                    f"{part.key}: {part.label} has sparse gradients"
                    f" ({name or type(layer).__name__}), and fused optimizers take dense ones; set"
                    f" sparse=False"
                )
        for name, tensor in part.module.state_dict().items():
            if tensor.dtype not in DTYPES:
                raise UserError(
                    f"{part.key}: {part.label} has a buffer of {tensor.dtype} ({name}), which no"
                    f" checkpoint holds; register it with persistent=False, or another dtype"
                )


def _failure(blueprint: Blueprint, index: int, size: int, fake: bool) -> _Failure | None:
    """Makes a module and runs its step with so many samples; says what has failed."""
    with _quiet(), fake_mode() if fake else torch.device("cpu"):
        if fake:
            module = blueprint.fake_module(index, FAKE_DEVICE)
        else:
            module = blueprint.uncompiled(index, FAKE_DEVICE)
        module.guard.is_refused = never
        parts = _parts(blueprint, index, [*module.body.children(), module.head])
        watch = _Watch(parts)
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
        fill_queues(blueprint, module, step, size)
    module(x, labels, step)
    module.signal()
    module.receive(_like(specs.x, size) if index else None)
    module.learn()
    if module.lagged.expects(step, 0):
        module.apply_lagged(step, 0, *_arrived(blueprint, index, step, size))
    if any(parameter.grad is not None for parameter in module.parameters()):
        raise _RefusedError(_REENTRANT)
    return step


def _arrived(blueprint: Blueprint, index: int, step: Step, size: int) -> list[Tensor]:
    """A lagged message for a module, of zeros."""
    specs = blueprint.lagged_specs(index + 1, size)
    contents = blueprint.run_plan.lag.applied(index, step.number, 0, step.microbatches)
    message = (spec for content in contents for spec in specs.get(content, ()))
    return [torch.zeros(spec.shape, dtype=spec.dtype) for spec in message]


def _like(spec: Spec, size: int) -> Tensor:
    shape = (size, *spec.shape[1:])
    if spec.dtype.is_floating_point:
        return torch.randn(shape, dtype=spec.dtype)
    return torch.zeros(shape, dtype=spec.dtype)


def _labels(blueprint: Blueprint, spec: Spec, size: int, fake: bool) -> Tensor:
    if fake or spec.dtype.is_floating_point:
        return torch.ones((size, *spec.shape[1:]), dtype=spec.dtype)
    return blueprint.task.example_labels(size, torch.Generator())


_REENTRANT = (
    "uses reentrant checkpointing, whose gradients go past the module; pass use_reentrant=False"
    " to torch.utils.checkpoint, or set modules.recompute=true instead"
)


def _frozen(module: nn.Module) -> Iterator[tuple[str, nn.Parameter]]:
    return ((name, p) for name, p in module.named_parameters() if not p.requires_grad)


class _Watch:
    """Notes which part is running, and looks at what it gives.

    Attributes:
        now: the part that is running.
    """

    def __init__(self, parts: Sequence[_Part]) -> None:
        self.now: _Part | None = None
        self._evaluated: dict[str, torch.dtype] = {}
        self._seen: set[Any] = set()
        self._versions: dict[str, int] = {}
        self._saved = {
            p.label: {n: t.shape for n, t in p.module.state_dict().items()} for p in parts
        }
        for part in parts:
            part.module.register_forward_pre_hook(partial(self._before, part))
            part.module.register_forward_hook(partial(self._after, part))

    def _before(self, part: _Part, module: nn.Module, args: tuple[Any, ...]) -> Any:  # noqa: ANN401
        self.now = part
        self._versions = {name: tensor._version for name, tensor in _frozen(module)}
        x = args[0]
        if torch.is_grad_enabled() and x.is_floating_point() and not x.requires_grad:
            return (x.detach().requires_grad_(),)  # what happens inside has a graph then
        return None

    def _after(self, part: _Part, module: nn.Module, args: tuple[Any, ...], y: object) -> None:
        mode = "while training" if module.training else "in evaluation"
        if not isinstance(y, Tensor) or not y.is_floating_point():
            kind = str(y.dtype) if isinstance(y, Tensor) else type(y).__name__
            raise _RefusedError(
                f"gives {kind} {mode} instead of a tensor of numbers; return one in both modes"
            )
        shape = y.shape if part.shape is None else (len(args[0]), *part.shape)
        if tuple(y.shape) != tuple(shape):
            raise _RefusedError(
                f"gives {list(y.shape)} {mode}, and {list(shape)} are needed; return the same"
                f" shape in both modes"
            )
        evaluated = self._evaluated.setdefault(part.label, y.dtype)
        if module.training and y.dtype != evaluated:
            raise _RefusedError(
                f"gives {y.dtype} {mode} and {evaluated} in evaluation; return the same in both"
            )
        if self._reaches_checkpoint(y):
            raise _RefusedError(_REENTRANT)
        self._check_buffers(part)
        self._check_frozen(part)
        self.now = None

    def _check_buffers(self, part: _Part) -> None:
        for name, buffer in part.module.named_buffers():
            before = self._saved[part.label].get(name, buffer.shape)
            if buffer.requires_grad:
                raise _RefusedError(
                    f"keeps the graph of a step in its buffer {name}; assign a detached tensor"
                )
            if buffer.shape != before:
                raise _RefusedError(
                    f"changes the shape of its buffer {name} from {list(before)} to"
                    f" {list(buffer.shape)}, with which no checkpoint could be loaded; keep one"
                    f" shape, or register it with persistent=False"
                )

    def _check_frozen(self, part: _Part) -> None:
        for name, tensor in _frozen(part.module):
            if tensor._version != self._versions.get(name, tensor._version):
                raise _RefusedError(
                    f"writes to its frozen parameter {name}, also in second passes and evaluations;"
                    f" register it as a buffer"
                )

    def _reaches_checkpoint(self, y: Tensor) -> bool:
        """Whether there is a reentrant checkpoint, torch's or another library's, in the graph."""
        nodes = [y.grad_fn]
        while nodes:
            node = nodes.pop()
            if node is None or node in self._seen:
                continue
            if "CheckpointFunction" in node.name():
                return True
            self._seen.add(node)
            nodes.extend(following for following, _ in node.next_functions)
        return False


def _culprit(parts: Sequence[_Part], blueprint: Blueprint, index: int, size: int) -> _Part | None:
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
