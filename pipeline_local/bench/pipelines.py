"""torch.distributed.pipelining's schedules as peers, on one or several stages per rank."""

import copy
from collections.abc import Iterator, Sequence
from functools import partial
from itertools import pairwise
from typing import Any

import torch
from torch.distributed.pipelining import (
    PipelineStage,
    Schedule1F1B,
    ScheduleGPipe,
    ScheduleInterleaved1F1B,
    ScheduleInterleavedZeroBubble,
)
from torch.distributed.pipelining.schedules import PipelineScheduleMulti, PipelineScheduleSingle

from pipeline_local.bench.peer import (
    Setting,
    Trained,
    UnavailableError,
    needs_own_devices,
    needs_ranks,
)
from pipeline_local.placement import partition
from pipeline_local.record.stopwatch import Stopwatch

SCHEDULES: dict[str, type[PipelineScheduleSingle] | type[PipelineScheduleMulti]] = {
    "gpipe": ScheduleGPipe,
    "1f1b": Schedule1F1B,
    "interleaved": ScheduleInterleaved1F1B,
    "zerobubble": ScheduleInterleavedZeroBubble,
}
LOOPS = {"interleaved": 2, "zerobubble": 2}
"""Stages that each rank has, one after the other around all ranks, where it has several."""
PIECES = {"gpipe": 1, "1f1b": 1, "deepspeed": 1, "interleaved": 2, "zerobubble": 6}
"""Equal pieces of a rank's work on one microbatch; in a step it waits for one of each other rank.

1: all of it. 2: that of one of its two stages (Narayanan et al., 2021). 6: the forward pass of one
of them, as gradients of weights fill the other gaps (Qi et al., 2024), if the forward pass and both
kinds of gradients cost the same."""


def bubble(name: str, ranks: int, microbatches: int) -> float | None:
    """Part of the time in which a rank has nothing to do, from theory; None for no pipeline."""
    if name not in PIECES:
        return None
    return (ranks - 1) / (PIECES[name] * microbatches + ranks - 1)


def cut(setting: Setting, loops: int) -> list[range]:
    """The blocks of `loops` stages per rank, in order; rank r has every stage r modulo the ranks.

    One each: those of `local`. More: from the same blocks by what they cost, where the stages of
    `local` count as equal, as whoever cut them meant them to be.
    """
    ranks, costs = setting.rank_info.world_size, setting.placement.costs[0]
    stages = [setting.stage_blocks(stage) for stage in range(ranks)]
    if loops == 1:
        return stages
    totals = [cost.forward + cost.backward + cost.update for cost in costs.blocks]
    totals[-1] += costs.classifier.forward + costs.classifier.backward + costs.classifier.update
    shares = [totals[i] / (sum(totals[i] for i in part) or 1.0) for part in stages for i in part]
    return around(shares, ranks, loops)


def around(costs: Sequence[float], ranks: int, loops: int) -> list[range]:
    """Contiguous non-empty ranges, `loops` per rank, that make a step at m = p short.

    It takes the dearest rank's work on p microbatches, and the dearest stage's on p - 1 to fill.
    From the evenest stages, edges move by one block at a time as long as that gets less.
    """

    def seconds(edges: Sequence[int]) -> float:
        stages = [sum(costs[a:b]) for a, b in pairwise(edges)]
        dearest = max(sum(stages[rank::ranks]) for rank in range(ranks))
        return ranks * dearest + (ranks - 1) * max(stages)

    best = [*(part.start for part in partition.balanced(costs, ranks * loops)), len(costs)]
    while True:
        nearest = min(_moved(best), key=seconds, default=best)
        if seconds(nearest) >= seconds(best) * (1 - 1e-9):  # else rounding could go in circles
            return [range(a, b) for a, b in pairwise(best)]
        best = nearest


def _moved(edges: Sequence[int]) -> Iterator[list[int]]:
    """One inner edge by one block, where no range gets empty."""
    for k in range(1, len(edges) - 1):
        for edge in (edges[k] - 1, edges[k] + 1):
            if edges[k - 1] < edge < edges[k + 1]:
                yield [*edges[:k], edge, *edges[k + 1 :]]


class TimedStage(PipelineStage):
    """A stage that knows how long it computes."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:  # noqa: ANN401 (torch's)
        super().__init__(*args, **kwargs)
        self.busy = Stopwatch(self.device)

    def forward_one_chunk(self, *args: Any, **kwargs: Any) -> Any:  # noqa: ANN401 (torch's)
        """One microbatch forward."""
        with self.busy.running():
            return super().forward_one_chunk(*args, **kwargs)

    def backward_one_chunk(self, *args: Any, **kwargs: Any) -> Any:  # noqa: ANN401 (torch's)
        """One microbatch backward, or the gradients of its inputs alone."""
        with self.busy.running():
            return super().backward_one_chunk(*args, **kwargs)

    def backward_weight_one_chunk(self, *args: Any, **kwargs: Any) -> Any:  # noqa: ANN401 (torch's)
        """The gradients of the weights, where they come later."""
        with self.busy.running():
            return super().backward_weight_one_chunk(*args, **kwargs)


class Pipelined(Trained):
    """torch.distributed.pipelining over the stages that `local` has, or over more (see `cut`)."""

    def __init__(self, setting: Setting, name: str, microbatches: int) -> None:
        super().__init__(setting)
        self._name = name
        self._microbatches = microbatches
        self._updating = Stopwatch(setting.rank_info.device)

    def setup(self) -> None:
        """This rank's stages."""
        rank_info, loops = self.setting.rank_info, LOOPS.get(self._name, 1)
        needs_ranks(rank_info)
        needs_own_devices(self.setting)
        every = cut(self.setting, loops)
        if self._name == "zerobubble":
            _needs_splitting(self.setting, every)
        numbers = range(rank_info.rank, len(every), rank_info.world_size)
        parts = self.make(*(every[number] for number in numbers))
        self._stages = [
            TimedStage(part, number, len(every), rank_info.device)
            for part, number in zip(parts, numbers, strict=True)
        ]
        kind: Any = SCHEDULES[self._name]  # one stage or a list of them, as the schedule takes it
        stages = self._stages if loops > 1 else self._stages[0]
        schedule = kind(stages, self._microbatches, self.setting.loss)
        x, labels = self.setting.batch
        inputs = (x,) if self._stages[0].is_first else ()
        target = labels if self._stages[-1].is_last else None
        self._run = partial(schedule.step, *inputs, target=target, return_outputs=False)

    def step(self) -> None:
        """All microbatches by the schedule, then update."""
        self._run()
        with self._updating.running():
            self.update()

    def seconds(self) -> dict[str, float]:
        """Computing."""
        busy = sum(stage.busy.seconds for stage in self._stages)
        return {"busy": busy + self._updating.seconds}


def _needs_splitting(setting: Setting, stages: Sequence[range]) -> None:
    """What torch's gradients of inputs without those of weights do not take."""
    if setting.config.compile:
        raise UnavailableError("torch does not split the backward pass of compiled modules")
    blueprint = setting.blueprint
    for end in (part[-1] for part in stages[:-1]):
        block = blueprint.backbone.blocks[end]
        x = torch.empty(2, *blueprint.input_shapes[end], device="meta")
        y = copy.deepcopy(block.module).eval()(x).to(blueprint.wire_format.inside).contiguous()
        if y._is_view():
            raise UnavailableError(
                f"torch detaches what stages put out, and block {block.name} puts out a view"
            )
