"""A dry run: a stage's largest step on fake tensors, which counts every byte and allocates none.

The stage, its modules, optimizers and run plan are the real ones; only the tensors are fake. So
there is no separate model of what is alive when: activations after act 1, the head's graph in act
2, gradients in act 3, the second pass of reconciliation, all gradients before the update.
What kernels allocate temporarily is not seen; what libraries keep, a profile measures.
"""

import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from itertools import chain

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from pipeline_local.blueprint.blueprint import Blueprint
from pipeline_local.blueprint.contract import Spec
from pipeline_local.blueprint.device import Device
from pipeline_local.blueprint.run_plan import microbatch_size
from pipeline_local.engines.replicas import Replicas
from pipeline_local.engines.sharded import ShardedOptimizer, shards
from pipeline_local.errors import UserError, type_and_line
from pipeline_local.learning.body import Body
from pipeline_local.learning.lag_plan import LagPlan
from pipeline_local.learning.module import LocalModule
from pipeline_local.learning.precision import autocast
from pipeline_local.learning.step import Step
from pipeline_local.memory.fake_edges import FakeDownstream, FakeUpstream, fake_message, num_bytes
from pipeline_local.memory.fake_mode import fake_mode, made_up_values
from pipeline_local.memory.live_bytes import LiveBytes
from pipeline_local.models.backbone import fake_copy
from pipeline_local.pipeline.stage import Stage
from pipeline_local.record.trace import Trace
from pipeline_local.seeds import generators_kept

RUN = 2
"""Microbatches that are run: the third meets what the second meets, gradients of earlier ones."""

CPU_PLAN = Device()
"""A CPU, as a device to plan for."""

FAKE_DEVICE = torch.device("cpu")
"""The device of all fake tensors, whatever device they stand for."""


@dataclass(frozen=True)
class ModuleBytes:
    """The memory that one module takes, in bytes.

    Attributes:
        parameters: its parameters and buffers.
        gradients: the gradients of all trained parameters, between act 3 and the update.
        optimizer: the state of its optimizer.
        activations: what act 1 keeps for act 3, of one microbatch, including what it sends.
    """

    parameters: int
    gradients: int
    optimizer: int
    activations: int


@dataclass(frozen=True)
class StageBytes:
    """The memory that one stage takes, in bytes.

    Attributes:
        modules: the bytes of each module.
        boundary: buffers of its outer edges: received ahead, or sent and not yet received.
        lagged: what is kept of earlier steps for lagged messages.
        workspaces: what the device's libraries keep for themselves.
        peak: the most at once, workspaces included.
        act: the act of the peak, and its module (from 1).
    """

    modules: tuple[ModuleBytes, ...]
    boundary: int
    lagged: int
    workspaces: int
    peak: int
    act: str


def stage_bytes(
    blueprint: Blueprint,
    numbers: Sequence[int],
    num_stages: int,
    device: Device = CPU_PLAN,
    replicas: int = 1,
) -> StageBytes:
    """Measures one stage by a dry run of its largest step and of an evaluation.

    Args:
        blueprint: the run.
        numbers: the modules of the stage, in order.
        num_stages: S; with a single stage, nothing is sent.
        device: the device that the stage is to compute on.
        replicas: of the stage; the one with the largest shards of state counts.

    Raises:
        UserError: the network reads the value of a tensor, which a dry run does not have.
    """
    live_bytes = LiveBytes()
    with _faked(blueprint, device):
        modules = [blueprint.fake_module(number, FAKE_DEVICE) for number in numbers]
        for module in modules:
            module.guard.is_refused = never
            if blueprint.config.parallel.zero and replicas > 1:
                _shard(module, replicas)
            make_state(module.trainable, module.optimizer)
            live_bytes.hold(_statics(module))
        acts = _Acts(live_bytes)
        with live_bytes:
            held = _perform(blueprint, modules, acts, num_stages)
    return replace(held, workspaces=device.workspaces, peak=held.peak + device.workspaces)


class _Absent(Replicas):
    """The replicas beside one whose memory is counted; they are not there."""

    def __init__(self, size: int, index: int) -> None:
        super().__init__()
        self.size, self.index = size, index


def _shard(module: LocalModule, replicas: int) -> None:
    """Leaves a module the largest shard of its optimizer's state."""
    held = [_size(shard) for shard in shards(module.trainable, replicas)]
    absent = _Absent(replicas, held.index(max(held)))
    module.engine.optimizer = ShardedOptimizer(module.optimizer, absent)


def kept_bytes(blueprint: Blueprint, parts: Sequence[nn.Module], start: int) -> list[int]:
    """Measures the bytes that consecutive parts keep for their backward passes, on a CPU.

    Args:
        blueprint: the run.
        parts: blocks or heads on the meta device; the first gets a microbatch as a module gets it.
        start: the index of the block in whose place the first part stands.

    Returns:
        The bytes of each part, for one microbatch.

    Raises:
        UserError: as `stage_bytes`.
    """
    config, inside = blueprint.config, blueprint.wire_format.inside
    size = microbatch_size(config)
    dtype = inside if start else blueprint.input_dtype
    kept, live_bytes = [], LiveBytes()
    with _faked(blueprint, CPU_PLAN):
        shape = size, *blueprint.input_shapes[start]
        x = given = torch.empty(shape, dtype=dtype, requires_grad=start > 0)
        live_bytes.hold([given])  # a module keeps it anyway
        for part in parts:
            fake = fake_copy(part, FAKE_DEVICE, blueprint.dtype, config.channels_last)
            body = Body([fake], config.modules.recompute)
            live_bytes.hold([*body.parameters(), *body.buffers()])
            before = live_bytes.live
            with live_bytes, autocast("cpu", blueprint.wire_format.networks):
                x = body(x)
            kept.append(live_bytes.live - before)
    return kept


@contextmanager
def _faked(blueprint: Blueprint, device: Device) -> Iterator[None]:
    """Makes tensors fake in the context, and leaves the global generators as they were."""
    with generators_kept(), fake_mode(device.type):
        try:
            yield
        except (NotImplementedError, RuntimeError) as error:
            raise UserError(
                f"model.name: a dry run of {blueprint.config.model.name}, its heads and loss,"
                f" without data, failed ({type_and_line(error)}); choose cuts that need"
                f" no dry run, train, and read peak_memory_bytes"
            ) from error


class _Acts(Trace):
    """A trace that notes the most bytes alive in each act."""

    def __init__(self, live_bytes: LiveBytes) -> None:
        super().__init__()
        self._live_bytes = live_bytes
        self.peaks: dict[str, int] = defaultdict(int)
        self.kept: dict[int, int] = defaultdict(int)

    @contextmanager
    def span(
        self, act: str, module: int, step: int, microbatch: int = 0, content: str = ""
    ) -> Iterator[None]:
        """Records the enclosed work."""
        before = self._live_bytes.peak = self._live_bytes.live
        with made_up_values() if act == "update" else nullcontext():
            yield
        name = f"{act}, module {module + 1}"
        self.peaks[name] = max(self.peaks[name], self._live_bytes.peak)
        if act == "forward":
            self.kept[module] = max(self.kept[module], self._live_bytes.live - before)


def _perform(
    blueprint: Blueprint, modules: list[LocalModule], acts: _Acts, num_stages: int
) -> StageBytes:
    numbers, step = [module.index for module in modules], heaviest(blueprint)
    first, last = numbers[0], numbers[-1]
    lag = blueprint.run_plan.lag
    upstream = _upstream(blueprint, first, step)
    outer = blueprint.contract(last) if num_stages > 1 and not blueprint.is_last(last) else None
    steps = [
        replace(each, microbatches=min(RUN, each.microbatches))
        for each in _steps(step, lag, numbers)
    ]
    arriving = [outer.lagged_messages(blueprint.run_plan, each) for each in steps if outer]
    lagged = [specs for _, specs in chain.from_iterable(arriving)]
    downstream = FakeDownstream(outer, lagged)
    for each in steps:
        for module in modules:
            fill_queues(blueprint, module, replace(each, microbatches=step.microbatches))
        Stage(modules, upstream, downstream, acts).train(each)
    del upstream
    _evaluate(blueprint, modules, acts, downstream)
    act = max(acts.peaks, key=lambda name: acts.peaks[name])
    return StageBytes(
        modules=tuple(_of_module(module, acts.kept[module.index]) for module in modules),
        boundary=downstream.num_bytes + _upstream(blueprint, first, step).num_bytes,
        lagged=sum(_under_way(blueprint, module.index) for module in modules),
        workspaces=0,
        peak=acts.peaks[act],
        act=act,
    )


def heaviest(blueprint: Blueprint) -> Step:
    """Returns a step with everything that may happen in one step of the run."""
    reconcile = blueprint.config.reconcile
    on, direction = reconcile.weight > 0, reconcile.direction
    lag = blueprint.run_plan.lag
    every = math.lcm(*(content.every for content in lag.contents))
    return Step(
        number=-(-lag.longest // every) * every,
        lr=blueprint.config.optimizer.lr,
        microbatches=blueprint.config.train.microbatches,
        reconcile=on and direction != "upstream",
        compare=True,
        log=True,
    )


def _steps(step: Step, lag: LagPlan, numbers: Sequence[int]) -> list[Step]:
    """Returns this step, and later ones in which modules apply what they do not apply in it."""
    last, later = step.microbatches - 1, set()
    for index in numbers:
        applied = lag.applied(index, step.number, last, step.microbatches)
        for content in set(lag.contents) - set(applied):
            number = step.number + lag.delay(content, index)
            if content in lag.applied(index, number, last, step.microbatches):
                later.add(number)
    more = (Step(n, step.lr, step.microbatches, compare=True, log=True) for n in sorted(later))
    return [step, *more]


def fill_queues(
    blueprint: Blueprint,
    module: LocalModule,
    step: Step,
    size: int | None = None,
    made: Callable[[Sequence[Spec]], tuple[Tensor, ...]] = fake_message,
) -> None:
    """Fills a module's queues with what earlier steps have left there when `step` begins, and with
    what the microbatches of `step` leave there that are not run.

    Args:
        blueprint, module: of the run, and in it.
        step: the one that will be run.
        size: of the microbatches; None: as configured.
        made: makes their tensors; a real step reads them, so that they need values.
    """
    lag, index, count = blueprint.run_plan.lag, module.index, step.microbatches
    queues = module.lagged
    for queue in (queues.awaiting, queues.passing, queues.pending):
        queue.drop(step.number)
    specs = blueprint.lagged_specs(index, size)
    kept = blueprint.module_specs(index, size).kept
    first = step.number - lag.longest
    parts = [(n, part) for n in range(first, step.number) for part in range(count)]
    parts += [(step.number, part) for part in range(RUN, count)]
    applies = lag.applied(index, step.number, 0, count)
    for number, part in parts:
        now = number == step.number
        if lag.last_use(index, number) >= step.number and not (now and applies):
            queues.awaiting.push(number, part, *made(kept))
        contents = [c for c in lag.sent(index, number, part, count) if not (now and c.once)]
        message = [spec for content in contents for spec in specs.get(content, ())]
        if message and number >= step.number - lag.steps:
            queues.pending.push(number, part, *made(message))
    for part in range(count):
        sent = lag.sent(index, step.number, part, count)
        passed = [spec for c in sent if c.is_passed_on(index) for spec in specs[c]]
        if passed:
            queues.passing.push(step.number - 1, part, *made(passed))


def _under_way(blueprint: Blueprint, index: int) -> int:
    """Returns the most bytes that a module's queues hold."""
    lag, specs = blueprint.run_plan.lag, blueprint.lagged_specs(index)
    step = heaviest(blueprint)
    batches = range(step.number - lag.longest, step.number + 1)
    kept = sum(lag.last_use(index, number) >= step.number for number in batches)
    messages = sum(
        num_bytes(each)
        * (
            lag.most_pending(content, step.microbatches)
            + (1 if content.once else step.microbatches) * content.is_passed_on(index)
        )
        for content, each in specs.items()
    )
    return messages + kept * step.microbatches * num_bytes(blueprint.module_specs(index).kept)


def _upstream(blueprint: Blueprint, first: int, step: Step) -> FakeUpstream:
    contract = blueprint.contract(max(first - 1, 0))
    if first:
        return FakeUpstream((contract.activations, contract.labels), (contract.gradients,), step)
    batch = contract.labels.shape[0]
    images = Spec((batch, *blueprint.info.sample_shape), blueprint.input_dtype)
    return FakeUpstream((images, contract.labels), (), step)


def _evaluate(
    blueprint: Blueprint, modules: list[LocalModule], acts: _Acts, downstream: FakeDownstream
) -> None:
    first = modules[0].index
    contract = blueprint.contract(max(first - 1, 0))
    parts = blueprint.config.train.microbatches
    size = blueprint.config.data.batch_size // parts
    images = Spec((size, *blueprint.info.sample_shape), blueprint.input_dtype)
    from_above = (contract.test_activations, contract.test_labels, contract.test_ensemble)
    message = from_above if first else (images, contract.test_labels)
    upstream, outputs = FakeUpstream(message, (), Step(0, 0.0)), []
    if not blueprint.task.adds_up:  # kept of the parts that are not run, and put together
        kept = (contract.test_ensemble, contract.test_ensemble, contract.test_labels)
        outputs = [fake_message(kept) for _ in range((parts - RUN) * (len(modules) + 1))]
    run = min(RUN, parts)
    Stage(modules, upstream, downstream, acts).evaluate([run * size], 0, run)
    del outputs


def never(_: Tensor) -> bool:
    """Whether an update is refused: a dry run has no numbers that could be wrong."""
    return False


def make_state(params: Sequence[Tensor], optimizer: Optimizer) -> None:
    """Lets an optimizer make its state, as it does at its first step."""
    for parameter in params:
        parameter.grad = torch.empty_like(parameter)
    with made_up_values():
        optimizer.step()
    optimizer.zero_grad(set_to_none=True)


def state(optimizer: Optimizer) -> list[Tensor]:
    """Returns the tensors of an optimizer's state."""
    states = optimizer.state.values()
    return [v for state in states for v in state.values() if isinstance(v, Tensor)]


def _statics(module: LocalModule) -> list[Tensor]:
    return [*module.parameters(), *module.buffers(), *state(module.optimizer)]


def _of_module(module: LocalModule, kept: int) -> ModuleBytes:
    return ModuleBytes(
        parameters=_size([*module.parameters(), *module.buffers()]),
        gradients=_size(module.trainable),
        optimizer=_size(state(module.optimizer)),
        activations=kept,
    )


def _size(tensors: Iterable[Tensor]) -> int:
    return sum(t.numel() * t.element_size() for t in tensors)
