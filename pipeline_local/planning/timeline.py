"""Who does what when, in a short run: fill, steady state, drain.

Transfers take no time here, and every step is an average one.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from pipeline_local.planning.plan import StagePlan

Act = Literal["F", "S", "L"]
AHEAD = 2
"""Steps that a stage may be ahead of the next one, by the back-pressure of its channel."""


@dataclass(frozen=True)
class Bar:
    """One act of one stage; times in the plan's unit."""

    act: Act
    step: int
    begin: float
    end: float


def timeline(stages: Sequence[StagePlan], steps: int) -> list[list[Bar]]:
    """The acts of each stage, in order.

    A module's first act needs its upstream neighbour's first act of the same step, and its third
    act that neighbour's second.
    """
    rows: list[list[Bar]] = [[] for _ in stages]
    clock = [0.0] * len(stages)
    begun: list[list[float]] = [[] for _ in stages]
    for step in range(steps):
        arrived = signalled = 0.0
        for number, stage in enumerate(stages):
            begin = max(clock[number], arrived)
            if number + 1 < len(stages) and step >= AHEAD:
                begin = max(begin, begun[number + 1][step - AHEAD])
            begun[number].append(begin)
            bars = _acts(stage, step, begin, signalled)
            rows[number] += bars
            clock[number] = bars[-1].end
            arrived, signalled = bars[-3].end, bars[-2].end
    return rows


def _acts(stage: StagePlan, step: int, begin: float, signalled: float) -> list[Bar]:
    """All modules of a stage; only the first one waits for a signal from outside."""
    bars: list[Bar] = []
    for module in stage.modules:
        forward = begin + module.cost.forward
        signal = forward + module.cost.signal
        learn = max(signal, signalled)
        signalled = 0.0
        end = learn + module.cost.learn
        bars.append(Bar("F", step, begin, forward))
        bars.append(Bar("S", step, forward, signal))
        bars.append(Bar("L", step, learn, end))
        begin = end
    return bars
