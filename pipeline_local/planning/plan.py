"""What a run will need, before it is started: memory, traffic, time and balance.

Peaks come from a dry run on fake tensors, costs from a profile or from FLOPs. They are compared
with what backpropagation, 1F1B and data parallelism would need on the same devices.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from pipeline_local.blueprint.blueprint import Blueprint
from pipeline_local.blueprint.device import Device
from pipeline_local.config import Config
from pipeline_local.data.info import DataInfo
from pipeline_local.errors import UserError
from pipeline_local.memory.dry_run import ModuleBytes, StageBytes, stage_bytes
from pipeline_local.memory.fake_edges import num_bytes
from pipeline_local.placement import balance
from pipeline_local.placement.costs import Costs, Link, ModuleCost, Unit
from pipeline_local.placement.describe import describe
from pipeline_local.placement.draw import draw as draw_blueprint
from pipeline_local.placement.placement import Placement
from pipeline_local.planning.alternatives import Alternative, all_reduced, alternatives
from pipeline_local.planning.verdict import Lever, lever
from pipeline_local.ranks.mesh import Mesh
from pipeline_local.simulation.simulate import step_seconds
from pipeline_local.user_input import new_file

TOLERATED = 1.15
"""A warning about cuts is given where the largest cost is more than this many times the mean."""


@dataclass(frozen=True)
class ModulePlan:
    """The plan of one module.

    Attributes:
        number: number of the module, from 1.
        blocks: names of its blocks.
        head: name of its head.
        memory: bytes that it holds.
        cost: cost of its acts in an average step, in the plan's unit.
    """

    number: int
    blocks: tuple[str, ...]
    head: str
    memory: ModuleBytes
    cost: ModuleCost


@dataclass(frozen=True)
class StagePlan:
    """The plan of one stage.

    Attributes:
        device: the device that it computes on.
        modules: the plans of its modules.
        memory: bytes that the device must hold.
        room: bytes that the device has; None: unknown.
        replicas: number of its replicas.
    """

    device: Device
    modules: tuple[ModulePlan, ...]
    memory: StageBytes
    room: float | None
    replicas: int = 1

    @property
    def cost(self) -> float:
        """The cost of an average step on each replica, in the plan's unit."""
        return sum(module.cost.shared(self.replicas) for module in self.modules)


@dataclass(frozen=True)
class EdgePlan:
    """The messages between two stages in an average step, in bytes.

    Attributes:
        activations: bytes of activations and labels, sent downstream.
        signals: bytes of signals, sent downstream, on average over the steps.
        lagged: bytes of lagged messages, sent upstream, on average over the steps.
        seconds: transfer time of the activations of one microbatch; None without a profile.
    """

    activations: int
    signals: float
    lagged: float
    seconds: float | None


@dataclass(frozen=True)
class Cut:
    """A cut into parts: the first index of each part but the first, and largest over mean cost."""

    edges: tuple[int, ...]
    imbalance: float


@dataclass(frozen=True)
class Plan:
    """The plan of a run.

    Attributes:
        unit: unit of all costs: seconds with a profile, else FLOPs.
        origin: a text that says where the costs come from.
        batch_size: samples in a step.
        steps: optimizer steps of the run.
        seconds: simulated seconds of a step in the steady state, messages included; None without a
            profile.
        stages: the plans of all stages.
        edges: the messages from each stage to the next.
        imbalance: largest stage cost over the mean.
        stage_cut: the best placement of these modules, by the first module of each stage but the
            first; None where none fits the devices.
        module_cut: the best cut into as many modules, by the first block of each but the first. It
            changes the mathematics. None where none fits the devices.
        even_memory: bytes that the only stage would hold with `modules.cuts=memory`; None with
            several stages, a single module, or no such cut.
        block_names: names of all blocks.
        alternatives: local learning as configured, then it and other methods with the same numbers
            of microbatches.
        lever: the setting that takes local learning to the least memory; None where none does.
        mesh: the stages and replicas.
    """

    unit: Unit
    origin: str
    batch_size: int
    steps: int
    seconds: float | None
    stages: tuple[StagePlan, ...]
    edges: tuple[EdgePlan, ...]
    imbalance: float
    stage_cut: Cut | None
    module_cut: Cut | None
    even_memory: int | None
    block_names: tuple[str, ...]
    alternatives: tuple[Alternative, ...]
    lever: Lever | None
    mesh: Mesh


def draw(config: Config, info: DataInfo, num_stages: int, device: Device | None = None) -> Plan:
    """Plan a run.

    Args:
        config: the run's configuration.
        info: facts of the data.
        num_stages: number of stages.
        device: the device of the stages; None: the profile's, or this host's.

    Raises:
        UserError: the configuration does not fit together, its dry run fails, or the profile was
            measured on another type of device.
    """
    blueprint = draw_blueprint(config, info, device, tries=True)
    placement = Placement.of(blueprint, num_stages)
    costs, parts = placement.costs, placement.stages
    _refuse_another(device, costs)
    stages = tuple(_stages(placement))
    edges = tuple(
        _edge(blueprint, part[-1], receiver.link)
        for part, receiver in zip(parts, costs[1:], strict=False)
    )
    compared = alternatives(placement, [s.memory.peak for s in stages], _most_sent(stages, edges))
    return Plan(
        unit=costs[0].unit,
        origin="; ".join(dict.fromkeys(each.origin for each in costs)),
        batch_size=config.data.batch_size,
        steps=blueprint.run_plan.num_steps,
        seconds=step_seconds(blueprint, "local", num_stages),
        stages=stages,
        edges=edges,
        imbalance=imbalance([stage.cost for stage in stages]),
        stage_cut=_best_stages(placement),
        module_cut=_best_modules(placement),
        even_memory=_even_memory(placement),
        block_names=tuple(block.name for block in blueprint.backbone.blocks),
        alternatives=compared,
        lever=lever(placement, compared),
        mesh=placement.mesh,
    )


def write(plan: Plan, output: Path) -> None:
    """Write the plan as JSON to a new file.

    Raises:
        UserError: the file exists already or cannot be written.
    """
    new_file.write_json("--json", output, asdict(plan))


def _refuse_another(device: Device | None, costs: Sequence[Costs]) -> None:
    for measured in costs:
        if device is not None and measured.device.type != device.type:
            raise UserError(
                f"--device: modules.profile was measured on {measured.device.type}, got"
                f" {device.type}; leave one of them out"
            )


def _stages(placement: Placement) -> Iterator[StagePlan]:
    blueprint, count = placement.blueprint, len(placement.stages)
    heads = [row.head for row in describe(placement)]
    rooms = balance.room(blueprint, placement.costs)
    each = placement.costs, placement.module_costs, rooms, placement.mesh.replicas
    for part, on_device, costs, room, replicas in zip(placement.stages, *each, strict=True):
        memory = stage_bytes(blueprint, part, count, on_device.device, replicas)
        modules = tuple(
            ModulePlan(
                number=index + 1,
                blocks=tuple(block.name for block in blueprint.blocks(index)),
                head=heads[index],
                memory=held,
                cost=cost,
            )
            for index, held, cost in zip(part, memory.modules, costs, strict=True)
        )
        yield StagePlan(
            on_device.device, modules, memory, None if room == math.inf else room, replicas
        )


def _edge(blueprint: Blueprint, index: int, link: Link | None) -> EdgePlan:
    contract = blueprint.contract(index)
    micro = blueprint.config.train.microbatches
    signals = blueprint.run_plan.compare_fraction * micro
    message = num_bytes([contract.activations, contract.labels])
    gradient = num_bytes([contract.gradients])
    return EdgePlan(
        activations=micro * message,
        signals=gradient * signals,
        lagged=sum(
            num_bytes(specs) * (1 if content.once else micro) / content.every
            for content, specs in contract.lagged.items()
        ),
        seconds=link.seconds(message) if link else None,
    )


def _most_sent(stages: Sequence[StagePlan], edges: Sequence[EdgePlan]) -> float:
    """The most bytes that one rank sends in an average step: downstream, upstream, and to the other
    replicas of its stage."""
    down = [*(edge.activations + edge.signals for edge in edges), 0.0]
    up = [0.0, *(edge.lagged for edge in edges)]
    return max(
        (more + less) / stage.replicas
        + all_reduced(sum(m.memory.gradients for m in stage.modules), stage.replicas)
        for stage, more, less in zip(stages, down, up, strict=True)
    )


def imbalance(costs: Sequence[float]) -> float:
    """Return the largest cost over their mean; 1 where there is none."""
    return max(costs) * len(costs) / sum(costs) if sum(costs) else 1.0


def _best_stages(placement: Placement) -> Cut | None:
    replicas = placement.mesh.replicas
    try:
        stages = balance.best_stages(placement.blueprint, placement.costs, replicas)
    except UserError:
        return None
    best = replace(placement, stages=tuple(stages))
    return Cut(tuple(part.start for part in stages[1:]), imbalance(best.stage_costs))


def _even_memory(placement: Placement) -> int | None:
    blueprint, device = placement.blueprint, placement.costs[0].device
    count, config = len(blueprint.modules), blueprint.config
    if len(placement.stages) > 1 or count == 1:
        return None
    modules = replace(config.modules, cuts="memory", count=count)
    try:
        even = draw_blueprint(replace(config, modules=modules), blueprint.info, blueprint.device)
        return stage_bytes(even, range(count), 1, device).peak
    except UserError:
        return None


def _best_modules(placement: Placement) -> Cut | None:
    """The best cut for the devices where the modules are placed now."""
    devices = zip(placement.costs, placement.stages, strict=True)
    costs = [on_device for on_device, part in devices for _ in part]
    try:
        parts = balance.best_modules(placement.blueprint, costs)
    except UserError:
        return None
    totals = [costs[k].module(k, len(parts), part).total for k, part in enumerate(parts)]
    return Cut(tuple(part.start for part in parts[1:]), imbalance(totals))
