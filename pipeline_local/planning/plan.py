"""What a run will need, before anything is paid for: memory, traffic, time, balance.

Peaks come from a rehearsal on fake tensors, costs from a profile or from FLOPs. Beside them stands
what backpropagation, 1F1B and data parallelism would need on the same devices.
"""

import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from pipeline_local.config import Config
from pipeline_local.data.images.datasets import DataInfo
from pipeline_local.errors import UserError
from pipeline_local.pipeline import cuts
from pipeline_local.pipeline.blueprint import Blueprint
from pipeline_local.pipeline.costs import Costs, Link, ModuleCost, Unit, of_stages
from pipeline_local.pipeline.description import describe
from pipeline_local.pipeline.device import Device
from pipeline_local.pipeline.neighbours import num_bytes
from pipeline_local.pipeline.rehearsal import ModuleBytes, StageBytes, rehearse
from pipeline_local.planning.alternatives import Alternative, alternatives
from pipeline_local.planning.simulate import step_seconds
from pipeline_local.record import newfile

TOLERATED = 1.15
"""Largest cost over the mean from which on another cut is worth a word."""


@dataclass(frozen=True)
class ModulePlan:
    """One module.

    Attributes:
        number: from 1.
        blocks: their names.
        head: its name.
        memory: what it holds.
        cost: of its acts in an average step, in the plan's unit.
    """

    number: int
    blocks: tuple[str, ...]
    head: str
    memory: ModuleBytes
    cost: ModuleCost


@dataclass(frozen=True)
class StagePlan:
    """One stage: its modules, what their device must hold and do, and the bytes that it has."""

    device: Device
    modules: tuple[ModulePlan, ...]
    memory: StageBytes
    room: float | None

    @property
    def cost(self) -> float:
        """Of an average step, in the plan's unit."""
        return sum(module.cost.total for module in self.modules)


@dataclass(frozen=True)
class EdgePlan:
    """What crosses between two stages in an average step, in bytes.

    Attributes:
        activations: downstream, with labels.
        signals: downstream, on average over the steps.
        feedback: upstream, on average.
        seconds: that the activations of one microbatch are on their way, where that is known.
    """

    activations: int
    signals: float
    feedback: float
    seconds: float | None


@dataclass(frozen=True)
class Cut:
    """A division, and the largest cost of its parts over their mean."""

    edges: tuple[int, ...]
    imbalance: float


@dataclass(frozen=True)
class Plan:
    """A run, before it is paid for.

    Attributes:
        unit: of all costs: seconds if there is a profile.
        origin: where the costs come from, for people.
        steps: optimizer steps of the run.
        seconds: of a step in the steady state, messages included, simulated; None without a
            profile.
        imbalance: largest stage cost over the mean.
        fill: part of the run that passes before the last stage has anything to do, from costs.
        stage_cut: the best placement of these modules: first module of each stage but the first;
            None where none fits the devices.
        module_cut: the best modules, as many as now: first block of each but the first. It changes
            the mathematics. None where none fits the devices.
        even_memory: bytes that the only stage would take with `modules.cuts=memory`; None where
            there are several stages, a single module, or no such cut.
        alternatives: other methods, for comparison.
    """

    unit: Unit
    origin: str
    batch_size: int
    steps: int
    seconds: float | None
    stages: tuple[StagePlan, ...]
    edges: tuple[EdgePlan, ...]
    imbalance: float
    fill: float
    stage_cut: Cut | None
    module_cut: Cut | None
    even_memory: int | None
    block_names: tuple[str, ...]
    alternatives: tuple[Alternative, ...]


def draw(config: Config, info: DataInfo, num_stages: int, device: Device | None = None) -> Plan:
    """Plan a run.

    Args:
        config: of the run.
        info: facts of the data.
        num_stages: of it.
        device: what the stages are to compute on; None: what the profile says, or this host's.

    Raises:
        UserError: the configuration does not fit together, or cannot be rehearsed; or a profile is
            of another type of device.
    """
    blueprint = Blueprint.draw(config, info, device)
    costs = blueprint.costs_of(num_stages)
    _refuse_another(device, costs)
    parts = blueprint.stages(num_stages)
    stages = tuple(_stage(blueprint, stage, num_stages) for stage in range(num_stages))
    totals = [stage.cost for stage in stages]
    return Plan(
        unit=costs[0].unit,
        origin="; ".join(dict.fromkeys(each.origin for each in costs)),
        batch_size=config.data.batch_size,
        steps=blueprint.schedule.num_steps,
        seconds=step_seconds(blueprint, "local", num_stages),
        stages=stages,
        edges=tuple(
            _edge(blueprint, part[-1], below.link)
            for part, below in zip(parts, costs[1:], strict=False)
        ),
        imbalance=_imbalance(totals),
        fill=_fill(stages, config.train.microbatches, blueprint.schedule.num_steps),
        stage_cut=_best_stages(blueprint, num_stages),
        module_cut=_best_modules(blueprint, num_stages),
        even_memory=_even_memory(blueprint, num_stages),
        block_names=tuple(block.name for block in blueprint.backbone.blocks),
        alternatives=alternatives(blueprint, num_stages),
    )


def write(plan: Plan, output: Path) -> None:
    """As JSON, into a new file.

    Raises:
        UserError: it exists already or cannot be written.
    """
    newfile.write("--json", output, json.dumps(asdict(plan), indent=2) + "\n")


def _refuse_another(device: Device | None, costs: Sequence[Costs]) -> None:
    for measured in costs:
        if device is not None and measured.device.type != device.type:
            raise UserError(
                f"--device: modules.profile was measured on {measured.device.type}, got"
                f" {device.type}; leave one of them out"
            )


def _stage(blueprint: Blueprint, stage: int, num_stages: int) -> StagePlan:
    part, devices = blueprint.stages(num_stages)[stage], blueprint.costs_of(num_stages)
    costs, room = of_stages(blueprint, num_stages)[stage], cuts.room(blueprint, devices)[stage]
    device = devices[stage].device
    memory = rehearse(blueprint, part, num_stages, device)
    rows = describe(blueprint, 1)
    modules = [
        ModulePlan(
            number=index + 1,
            blocks=tuple(block.name for block in blueprint.blocks(index)),
            head=rows[index].head,
            memory=held,
            cost=cost,
        )
        for index, held, cost in zip(part, memory.modules, costs, strict=True)
    ]
    return StagePlan(device, tuple(modules), memory, None if room == math.inf else room)


def _edge(blueprint: Blueprint, index: int, link: Link | None) -> EdgePlan:
    contract, reconcile = blueprint.contract(index), blueprint.config.reconcile
    micro = blueprint.config.train.microbatches
    signals = blueprint.schedule.part_that_compares * micro
    feedback = micro / reconcile.every if blueprint.schedule.has_feedback else 0.0
    message = num_bytes([contract.activations, contract.labels])
    gradient = num_bytes([contract.gradients])
    return EdgePlan(
        activations=micro * message,
        signals=gradient * signals,
        feedback=gradient * feedback,
        seconds=link.seconds(message) if link else None,
    )


def _imbalance(costs: Sequence[float]) -> float:
    return max(costs) * len(costs) / sum(costs) if sum(costs) else 1.0


def _fill(stages: Sequence[StagePlan], microbatches: int, steps: int) -> float:
    """Forward passes of one microbatch through all stages but the last, over the whole run."""
    first = sum(m.cost.forward for stage in stages[:-1] for m in stage.modules) / microbatches
    whole = first + steps * max(stage.cost for stage in stages)
    return first / whole if whole else 0.0


def _best_stages(blueprint: Blueprint, num_stages: int) -> Cut | None:
    costs, modules = blueprint.costs_of(num_stages), blueprint.modules
    try:
        parts = cuts.best_stages(blueprint, costs)
    except UserError:
        return None
    totals = [
        sum(on_device.module(k, len(modules), modules[k]).total for k in part)
        for on_device, part in zip(costs, parts, strict=True)
    ]
    return Cut(tuple(part.start for part in parts[1:]), _imbalance(totals))


def _even_memory(blueprint: Blueprint, num_stages: int) -> int | None:
    count, config, device = len(blueprint.modules), blueprint.config, blueprint.devices[0].device
    if num_stages > 1 or count == 1:
        return None
    modules = replace(config.modules, cuts="memory", count=count)
    try:
        even = Blueprint.draw(replace(config, modules=modules), blueprint.info, blueprint.device)
        return rehearse(even, range(count), 1, device).peak
    except UserError:
        return None


def _best_modules(blueprint: Blueprint, num_stages: int) -> Cut | None:
    """On the devices where the modules are now."""
    devices = zip(blueprint.costs_of(num_stages), blueprint.stages(num_stages), strict=True)
    costs = [on_device for on_device, part in devices for _ in part]
    try:
        parts = cuts.best_modules(blueprint, costs)
    except UserError:
        return None
    totals = [costs[k].module(k, len(parts), part).total for k, part in enumerate(parts)]
    return Cut(tuple(part.start for part in parts[1:]), _imbalance(totals))
