"""What a run will need, before anything is paid for: memory, traffic, time, balance.

Peaks come from a rehearsal on fake tensors, costs from a profile or from FLOPs. Beside them stands
what backpropagation, 1F1B and data parallelism would need on the same devices.
"""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from pipeline_local.config import Config
from pipeline_local.data.datasets import DataInfo
from pipeline_local.pipeline import partition
from pipeline_local.pipeline.blueprint import Blueprint
from pipeline_local.pipeline.costs import Costs, ModuleCost, Unit
from pipeline_local.planning.alternatives import Alternative, alternatives
from pipeline_local.planning.neighbours import num_bytes
from pipeline_local.planning.rehearsal import ModuleBytes, StageBytes, rehearse
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
    """One stage: its modules, and what their device must hold and do."""

    modules: tuple[ModulePlan, ...]
    memory: StageBytes

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
        imbalance: largest stage cost over the mean.
        fill: part of the run that passes before the last stage has anything to do, from costs.
        stage_cut: the best placement of these modules: first module of each stage but the first.
        module_cut: the best modules, one per stage or as many as now: first block of each but the
            first. It changes the mathematics.
        alternatives: other methods, for comparison.
    """

    unit: Unit
    origin: str
    batch_size: int
    steps: int
    stages: tuple[StagePlan, ...]
    edges: tuple[EdgePlan, ...]
    imbalance: float
    fill: float
    stage_cut: Cut
    module_cut: Cut
    block_names: tuple[str, ...]
    alternatives: tuple[Alternative, ...]


def draw(config: Config, info: DataInfo, num_stages: int) -> Plan:
    """Plan a run.

    Raises:
        UserError: the configuration does not fit together, or cannot be rehearsed.
    """
    blueprint = Blueprint.draw(config, info)
    parts = blueprint.stages(num_stages)
    costs = blueprint.costs
    modules = _module_costs(blueprint, costs)
    stages = tuple(_stage(blueprint, part, modules, num_stages) for part in parts)
    totals = [stage.cost for stage in stages]
    return Plan(
        unit=costs.unit,
        origin=costs.origin,
        batch_size=config.data.batch_size,
        steps=blueprint.schedule.num_steps,
        stages=stages,
        edges=tuple(_edge(blueprint, part[-1]) for part in parts[:-1]),
        imbalance=_imbalance(totals),
        fill=_fill(stages, config.train.microbatches, blueprint.schedule.num_steps),
        stage_cut=_best_stages([cost.total for cost in modules], num_stages),
        module_cut=_best_modules(blueprint, costs),
        block_names=tuple(block.name for block in blueprint.backbone.blocks),
        alternatives=alternatives(blueprint, num_stages),
    )


def write(plan: Plan, output: Path) -> None:
    """As JSON, into a new file.

    Raises:
        UserError: it exists already or cannot be written.
    """
    newfile.write("--json", output, json.dumps(asdict(plan), indent=2) + "\n")


def _module_costs(blueprint: Blueprint, costs: Costs) -> list[ModuleCost]:
    count = len(blueprint.modules)
    return [costs.module(k, count, blocks) for k, blocks in enumerate(blueprint.modules)]


def _stage(
    blueprint: Blueprint, part: range, costs: Sequence[ModuleCost], num_stages: int
) -> StagePlan:
    memory = rehearse(blueprint, part, num_stages)
    rows = blueprint.describe(1)
    modules = [
        ModulePlan(
            number=index + 1,
            blocks=tuple(block.name for block in blueprint.blocks(index)),
            head=rows[index].head,
            memory=held,
            cost=costs[index],
        )
        for index, held in zip(part, memory.modules, strict=True)
    ]
    return StagePlan(tuple(modules), memory)


def _edge(blueprint: Blueprint, index: int) -> EdgePlan:
    contract, reconcile = blueprint.contract(index), blueprint.config.reconcile
    micro, link = blueprint.config.train.microbatches, blueprint.costs.link
    signals = _part_that_compares(blueprint) * micro
    feedback = micro / reconcile.every if blueprint.schedule.has_feedback else 0.0
    message = num_bytes([contract.activations, contract.labels])
    gradient = num_bytes([contract.gradients])
    return EdgePlan(
        activations=micro * message,
        signals=gradient * signals,
        feedback=gradient * feedback,
        seconds=link.seconds(message) if link else None,
    )


def _part_that_compares(blueprint: Blueprint) -> float:
    """Of all steps; counted over at most a thousand."""
    schedule = blueprint.schedule
    numbers = range(min(schedule.num_steps, 1000))
    return sum(schedule.step(number).compare for number in numbers) / len(numbers)


def _imbalance(costs: Sequence[float]) -> float:
    return max(costs) * len(costs) / sum(costs) if sum(costs) else 1.0


def _fill(stages: Sequence[StagePlan], microbatches: int, steps: int) -> float:
    """Forward passes of one microbatch through all stages but the last, over the whole run."""
    first = sum(m.cost.forward for stage in stages[:-1] for m in stage.modules) / microbatches
    whole = first + steps * max(stage.cost for stage in stages)
    return first / whole if whole else 0.0


def _best_stages(costs: Sequence[float], num_stages: int) -> Cut:
    parts = partition.balanced(costs, num_stages)
    totals = [sum(costs[i] for i in part) for part in parts]
    return Cut(tuple(part.start for part in parts[1:]), _imbalance(totals))


def _best_modules(blueprint: Blueprint, costs: Costs) -> Cut:
    count = len(blueprint.modules)
    parts = costs.best_modules(count)
    totals = [costs.module(k, count, part).total for k, part in enumerate(parts)]
    return Cut(tuple(part.start for part in parts[1:]), _imbalance(totals))
