"""Who does what when, in a short run: fill, steady state, drain; as simulated.

Every step is an average one, with its gradients compared; transfers take no time here.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from pipeline_local.placement.costs import Link
from pipeline_local.planning.plan import StagePlan
from pipeline_local.simulation.programs import Setting, local
from pipeline_local.simulation.simulator import Act, Work, simulate
from pipeline_local.simulation.work import ModuleWork, StageWork


@dataclass(frozen=True)
class Bar:
    """One act of one module: F, S or L; times in the plan's unit."""

    act: str
    begin: float
    end: float


def timeline(stages: Sequence[StagePlan], steps: int) -> list[list[Bar]]:
    """The acts of each stage, in order."""
    rows: list[list[Bar]] = [[] for _ in stages]

    def draw(number: int, act: Act, begin: float, end: float) -> None:
        if isinstance(act, Work):
            rows[number].append(Bar(act.name, begin, end))

    works = tuple(map(_work, stages))
    at_once = Link(latency_seconds=0.0, bytes_per_second=math.inf)
    simulate(local(Setting(works, microbatches=1, steps=steps, links=(at_once,), every=1)), draw)
    return rows


def _work(stage: StagePlan) -> StageWork:
    """For local learning alone; act 3 with what comes once in a while, and with the update."""
    costs = [module.cost for module in stage.modules]
    return StageWork(
        modules=tuple(ModuleWork(cost.forward, cost.signal, cost.learn) for cost in costs),
        messages=0.0,
        forward=0.0,
        backward=0.0,
        update=0.0,
        activations=0.0,
        gradients=0.0,
    )
