"""Baselines from torch.distributed.pipelining, with one or several stages per rank."""

import copy
import inspect
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from typing import Any

import torch.distributed as dist
from torch import nn
from torch.distributed.pipelining import (
    PipelineStage,
    Schedule1F1B,
    ScheduleDualPipeV,
    ScheduleGPipe,
    ScheduleInterleaved1F1B,
    ScheduleInterleavedZeroBubble,
    ScheduleZBVZeroBubble,
)
from torch.distributed.pipelining.schedules import PipelineScheduleMulti, PipelineScheduleSingle
from torch.nn.parallel import DistributedDataParallel

from pipeline_local.bench.baseline import (
    TrainedParts,
    UnavailableError,
    Workload,
    check_ranks,
)
from pipeline_local.placement import partition
from pipeline_local.ranks.p2p import device_backend
from pipeline_local.record.stopwatch import Stopwatch

SCHEDULES: dict[str, type[PipelineScheduleSingle] | type[PipelineScheduleMulti]] = {
    "gpipe": ScheduleGPipe,
    "1f1b": Schedule1F1B,
    "interleaved": ScheduleInterleaved1F1B,
    "zerobubble": ScheduleInterleavedZeroBubble,
    "zbv": ScheduleZBVZeroBubble,
    "dualpipev": ScheduleDualPipeV,
}
SHAPES = {
    "interleaved": "loop",
    "zerobubble": "loop",
    "zbv": "V",
    "dualpipev": "V",
    "deepspeed-dualpipev": "V",
}
"""Pipelines with two stages on each rank, and how the second ones follow the first: in the same
order of ranks, or backwards, so that the first rank has the last stage, too."""
TO_ITSELF = not hasattr(PipelineScheduleMulti, "_initialize_pp_stages")
"""Whether torch first sends a message from each stage to the next, also where both are on one rank:
then V shapes fail over gloo, which has no connection of a rank to itself. torch 2.11 does so."""
SPLITTING = ("zerobubble", "zbv", "dualpipev")
"""Schedules that take the gradients of inputs before those of weights."""


def owners(name: str, ranks: int) -> list[int]:
    """Return the rank of each stage of a pipeline."""
    line = list(range(ranks))
    return line + {"loop": line, "V": line[::-1]}.get(SHAPES.get(name, ""), [])


def cut(workload: Workload, ranks: Sequence[int]) -> list[range]:
    """Return the blocks of each stage, given the rank of each stage.

    With one stage per rank these are the stages of local learning. With two, each of those is taken
    to cost the same, as its cuts were chosen to balance it, and is divided among its blocks by
    their estimated costs.
    """
    costs = workload.placement.costs[0]
    stages = [workload.stage_blocks(stage) for stage in range(workload.mesh.num_stages)]
    if len(ranks) == len(stages):
        return stages
    totals = [cost.forward + cost.backward + cost.update for cost in costs.blocks]
    totals[-1] += costs.classifier.forward + costs.classifier.backward + costs.classifier.update
    shares = [totals[i] / (sum(totals[i] for i in part) or 1.0) for part in stages for i in part]
    return around(shares, ranks)


def around(costs: Sequence[float], ranks: Sequence[int]) -> list[range]:
    """Return contiguous non-empty ranges, one for each stage, that minimise a step with m = p.

    The step's time is that of p microbatches on the most expensive rank, plus p - 1 microbatches on
    the most expensive stage to fill the pipeline. The search starts from the most even stages and
    moves one edge by one block at a time while the time decreases.

    Args:
        costs: cost of each block, in any unit.
        ranks: the rank of each stage, of 0 to p - 1.
    """
    count = max(ranks) + 1

    def seconds(edges: Sequence[int]) -> float:
        stages = [sum(costs[a:b]) for a, b in pairwise(edges)]
        pairs = [*zip(stages, ranks, strict=True)]
        most = max(sum(cost for cost, own in pairs if own == rank) for rank in range(count))
        return count * most + (count - 1) * max(stages)

    best = [*(part.start for part in partition.balanced(costs, len(ranks))), len(costs)]
    while True:
        nearest = min(_moved(best), key=seconds, default=best)
        if seconds(nearest) >= seconds(best) * (1 - 1e-9):  # rounding must not cause a loop
            return [range(a, b) for a, b in pairwise(best)]
        best = nearest


def _moved(edges: Sequence[int]) -> Iterator[list[int]]:
    """All edges with one inner edge moved by one block, where no range gets empty."""
    for k in range(1, len(edges) - 1):
        for edge in (edges[k] - 1, edges[k] + 1):
            if edges[k - 1] < edge < edges[k + 1]:
                yield [*edges[:k], edge, *edges[k + 1 :]]


class TimedStage(PipelineStage):
    """A stage that measures how long it computes."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:  # noqa: ANN401 (torch's)
        super().__init__(*args, **kwargs)
        self.busy = Stopwatch(self.device)

    def forward_one_chunk(self, *args: Any, **kwargs: Any) -> Any:  # noqa: ANN401 (torch's)
        """Run one microbatch forward."""
        with self.busy.running():
            return super().forward_one_chunk(*args, **kwargs)

    def backward_one_chunk(self, *args: Any, **kwargs: Any) -> Any:  # noqa: ANN401 (torch's)
        """Run one microbatch backward, or compute its input gradients alone."""
        with self.busy.running():
            return super().backward_one_chunk(*args, **kwargs)

    def backward_weight_one_chunk(self, *args: Any, **kwargs: Any) -> Any:  # noqa: ANN401 (torch's)
        """Compute the weight gradients of one microbatch, where they are deferred."""
        with self.busy.running():
            return super().backward_weight_one_chunk(*args, **kwargs)


@dataclass(frozen=True)
class Groups:
    """The groups of a rank where pipelines have replicas.

    Attributes:
        pipeline: the ranks of its pipeline, a rank of each stage.
        replicas: the ranks of its stage.
    """

    pipeline: dist.ProcessGroup
    replicas: dist.ProcessGroup


def groups(workload: Workload) -> Groups | None:
    """Open the groups of this rank; None where there is one pipeline. All ranks call it together.

    Raises:
        UnavailableError: the stages have different numbers of replicas.
    """
    mesh, rank_info = workload.mesh, workload.rank_info
    if not mesh.is_replicated:
        return None
    if len(set(mesh.replicas)) > 1:
        raise UnavailableError("needs as many replicas of each stage; pass one parallel.replicas")
    stages = [mesh.ranks(stage) for stage in range(mesh.num_stages)]
    backend = device_backend(rank_info.device)
    found: list[dist.ProcessGroup] = []
    for ranks in [*zip(*stages, strict=True), *stages]:
        group = dist.new_group(list(ranks), backend=backend)
        if isinstance(group, dist.ProcessGroup):
            found.append(group)
    return Groups(*found)


class Pipelined(TrainedParts):
    """A schedule of torch.distributed.pipelining over the stages that `cut` returns; where there
    are replicas, each stage is in a DistributedDataParallel, whose all-reduce torch's schedules
    leave to the last microbatch."""

    def __init__(self, workload: Workload, microbatches: int, name: str) -> None:
        super().__init__(workload)
        self._name = name
        self._microbatches = microbatches
        self._updating = Stopwatch(workload.rank_info.device)

    def setup(self) -> None:
        """Build this rank's stages and the schedule."""
        rank_info, name = self.workload.rank_info, self._name
        check_ranks(self.workload)
        mesh = self.workload.mesh
        found = groups(self.workload)
        pipeline = None if found is None else found.pipeline
        ranks = owners(name, mesh.num_stages)
        if name == "dualpipev":
            check_dualpipev(self.workload, self._microbatches)
        every = cut(self.workload, ranks)
        if name in SPLITTING:
            _needs_splitting(self.workload, every)
        if SHAPES.get(name) == "V" and TO_ITSELF and rank_info.device.type == "cpu":
            raise UnavailableError("needs a newer torch: this one sends messages to itself by gloo")
        stage = self.workload.stage
        numbers = [number for number, rank in enumerate(ranks) if rank == stage]
        parts = self.make(*(every[number] for number in numbers))
        self._stages = [
            TimedStage(
                _replicated(part, found), number, len(ranks), rank_info.device, group=pipeline
            )
            for part, number in zip(parts, numbers, strict=True)
        ]
        kind: Any = SCHEDULES[name]  # takes one stage or a list of them
        stages = self._stages if name in SHAPES else self._stages[0]
        schedule = kind(stages, self._microbatches, self.workload.loss)
        replica, count = mesh.replica(rank_info.rank), mesh.replicas[0]
        x, labels = (tensor.chunk(count)[replica] for tensor in self.workload.batch)
        inputs = (x,) if self._stages[0].is_first else ()
        target = labels if self._stages[-1].is_last else None
        self._run = partial(schedule.step, *inputs, target=target, return_outputs=False)

    def step(self) -> None:
        """Run all microbatches by the schedule, then update."""
        self._run()
        with self._updating.running():
            self.update()

    def seconds(self) -> dict[str, float]:
        """Return the seconds in which this rank has computed."""
        busy = sum(stage.busy.seconds for stage in self._stages)
        return {"busy": busy + self._updating.seconds}


def _replicated(part: nn.Module, found: Groups | None) -> nn.Module:
    """A stage in DDP. That must look for unused parameters: else torch's pipelines fail in their
    second step (torch 2.14.1), where DDP has noted the gradients' order twice."""
    if found is None:
        return part
    return DistributedDataParallel(
        part, process_group=found.replicas, find_unused_parameters=True, **without_buffers()
    )


def without_buffers() -> dict[str, Any]:
    """DDP options that leave out the broadcast of batch norm statistics, which costs time only."""
    known = inspect.signature(DistributedDataParallel).parameters
    name = "forward_sync_buffers" if "forward_sync_buffers" in known else "broadcast_buffers"
    return {name: False}


def check_dualpipev(workload: Workload, microbatches: int) -> None:
    """Check that there are enough microbatches to fill both ways.

    Raises:
        UnavailableError: there are fewer than stages.
    """
    least = 2 * workload.mesh.num_stages
    if microbatches < least:
        raise UnavailableError(
            f"DualPipeV needs a microbatch for each of {least} stages, got {microbatches}; pass"
            f" --microbatches {least}"
        )


def _needs_splitting(workload: Workload, stages: Sequence[range]) -> None:
    """Check what torch needs to compute input and weight gradients apart.

    Raises:
        UnavailableError: modules are compiled, or a stage outputs a view.
    """
    if workload.config.compile:
        raise UnavailableError("torch does not split the backward pass of compiled modules")
    blueprint = workload.blueprint
    for end in (part[-1] for part in stages[:-1]):
        block = blueprint.backbone.blocks[end]
        x = blueprint.meta_input(end)
        y = copy.deepcopy(block.module).eval()(x).to(blueprint.wire_format.inside).contiguous()
        if y._is_view():
            raise UnavailableError(
                f"torch detaches the stage outputs in place, and block {block.name} returns a view"
            )
