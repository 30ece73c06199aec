"""The simulated timeline of a short run: fill, steady state, drain.

Every step is an average one, and compares gradients; transfers take no time.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from pipeline_local.placement.costs import Link
from pipeline_local.planning.plan import StagePlan
from pipeline_local.simulation.programs import SimulatedRun, local
from pipeline_local.simulation.simulator import Act, Work, simulate
from pipeline_local.simulation.work import ModuleWork, StageWork


@dataclass(frozen=True)
class Bar:
    """One act of one module (F, S or L), with its begin and end in the plan's unit."""

    act: str
    begin: float
    end: float


def timeline(stages: Sequence[StagePlan], steps: int) -> list[list[Bar]]:
    """Return the acts of each stage, in order."""
    rows: list[list[Bar]] = [[] for _ in stages]

    def draw(number: int, act: Act, begin: float, end: float) -> None:
        if isinstance(act, Work):
            rows[number].append(Bar(act.name, begin, end))

    works = tuple(map(_work, stages))
    at_once = Link(latency_seconds=0.0, bytes_per_second=math.inf)
    simulate(
        local(SimulatedRun(works, microbatches=1, steps=steps, links=(at_once,), every=1)), draw
    )
    return rows


def _work(stage: StagePlan) -> StageWork:
    """The work of a replica of a stage for local learning; act 3 includes update and mean
    reconciliation."""
    several, costs = stage.replicas, [module.cost for module in stage.modules]
    return StageWork(
        modules=tuple(
            ModuleWork(
                cost.forward / several,
                cost.signal / several,
                (cost.learn - cost.update) / several + cost.update,
            )
            for cost in costs
        ),
        messages=0.0,
        forward=0.0,
        backward=0.0,
        update=0.0,
        activations=0.0,
        gradients=0.0,
    )
