"""The harness: interleaves all baselines on one set of ranks, and times the slowest rank.

A turn is a number of steps of one baseline, between barriers. Its first step is not timed: it fills
the pipeline and the caches. A rank's clock runs from the end of that step to the end of the turn,
and the longest interval of all ranks counts.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import partial

import torch
import torch.distributed as dist

from pipeline_local.bench.baseline import Baseline, Unavailable, UnavailableError, Workload
from pipeline_local.bench.bubbles import bubble
from pipeline_local.bench.local import IsolatedStage, LocalPipeline
from pipeline_local.bench.memory import Footprint
from pipeline_local.bench.methods import ACCUMULATING, PIPELINED, REPLICATED, WHOLE
from pipeline_local.bench.options import BenchOptions
from pipeline_local.config import Config
from pipeline_local.data.datasets import describe
from pipeline_local.errors import first_line
from pipeline_local.placement.draw import draw
from pipeline_local.ranks.join import COLLECTIVE_TIMEOUT, joined
from pipeline_local.ranks.rank import RankInfo
from pipeline_local.record.wall_time import settle
from pipeline_local.training import agreement
from pipeline_local.watch.store import RankStore

RECONCILED = "local, reconciled"
"""Name of the row with the configured reconciliation."""


@dataclass(frozen=True)
class Contestant:
    """A baseline to measure.

    Attributes:
        name: name of its row.
        ranks: number of ranks that compute.
        microbatches: number of microbatches in a step.
        baseline: this rank's part of the baseline.
        threads: CPU threads of each rank that computes.
        isolates: name of the row whose stages this entry measures without neighbours; "" for an
            entry with a row of its own.
        replicas: pipelines side by side.
    """

    name: str
    ranks: int
    microbatches: int
    baseline: Baseline
    threads: int
    isolates: str = ""
    replicas: int = 1

    @property
    def bubble_in_theory(self) -> float | None:
        """Idle fraction of a pipeline that fills and drains in every step; else None."""
        return bubble(self.name, self.ranks // self.replicas, self.microbatches)


@dataclass
class RankResult:
    """What one rank has measured of one baseline.

    Attributes:
        seconds: seconds of each turn.
        spent: for each turn, the seconds that this rank was `busy` or `waited`, where known.
        peak: peak memory in bytes.
        resident: most bytes by which the process grew.
        flops: FLOPs of the auxiliary heads and of the network on this rank.
        reason: why the baseline cannot run; else "".
    """

    seconds: list[float] = field(default_factory=list)
    spent: list[dict[str, float]] = field(default_factory=list)
    peak: int | None = None
    resident: int | None = None
    flops: tuple[int, int] | None = None
    reason: str = ""


@dataclass(frozen=True)
class Measured:
    """One baseline, with the results of all ranks."""

    entry: Contestant
    results: list[RankResult]


def measure(config: Config, rank_info: RankInfo, request: BenchOptions) -> list[Measured]:
    """Measure all baselines. All ranks call it together, and each gets the results of all ranks.

    Raises:
        UserError: the configuration does not fit these ranks.
    """
    with joined(rank_info, config.parallel) as store:
        rank_info = rank_info.on_host(store).placed(config.parallel)
        rank_info.prepare(config.parallel)
        rank_store = RankStore(store, rank_info.rank, rank_info.world_size)
        kind = agreement.share_p2p_kind(config, rank_info, rank_store)
        workload = Workload(draw(config, describe(config.data)), rank_info, kind)
        found = entries(workload, request)
        results = Turns(workload, rank_store, request.steps).run(found, request.runs)
        rank_store.set("results", {"results": [vars(result) for result in results]})
        gathered = rank_store.gather("results", COLLECTIVE_TIMEOUT)
        _meet(rank_info)  # the store ends with the first rank
    columns = zip(
        *[[RankResult(**result) for result in facts["results"]] for facts in gathered], strict=True
    )
    return [Measured(e, list(column)) for e, column in zip(found, columns, strict=True)]


def entries(workload: Workload, request: BenchOptions) -> list[Contestant]:
    """Return an entry for each baseline; one for each number of microbatches where it has any."""
    return [entry for name in request.baselines for entry in _entries(workload, request, name)]


def _entries(workload: Workload, request: BenchOptions, name: str) -> Iterator[Contestant]:
    ranks = workload.rank_info.world_size
    threads = workload.rank_info.threads(workload.config.parallel)
    if name in WHOLE:
        whole = threads * workload.rank_info.local_world_size
        for count in request.microbatches if name in ACCUMULATING else (1,):
            yield Contestant(name, 1, count, WHOLE[name](workload, count), whole)
    elif name in REPLICATED:
        yield Contestant(name, ranks, 1, REPLICATED[name](workload, 1), threads)
    elif name in PIPELINED:
        for count in request.microbatches:
            pipeline = PIPELINED[name](workload, count)
            replicas = workload.mesh.replicas[0]
            yield Contestant(name, ranks, count, pipeline, threads, replicas=replicas)
    else:
        yield from _local(workload, threads)


def _local(workload: Workload, threads: int) -> Iterator[Contestant]:
    ranks, count = workload.rank_info.world_size, workload.config.train.microbatches
    own = workload.config.reconcile
    for name, reconcile in (("local", replace(own, weight=0.0)), (RECONCILED, own)):
        if name == RECONCILED and own.weight == 0:
            yield Contestant(name, ranks, count, Unavailable("reconcile.weight is 0"), threads)
            continue
        yield Contestant(name, ranks, count, LocalPipeline(workload, reconcile), threads)
        if workload.mesh.is_replicated:
            bytes_alone = LocalPipeline(workload, reconcile, "bytes")
            yield Contestant(f"{name}, bytes alone", ranks, count, bytes_alone, threads)
            apart = LocalPipeline(workload, reconcile, "nothing")
            yield Contestant(f"{name}, nothing exchanged", ranks, count, apart, threads)
        if ranks > 1:
            baseline = IsolatedStage(workload, reconcile)
            yield Contestant(
                f"{name}, isolated stages", ranks, count, baseline, threads, isolates=name
            )


class Turns:
    """This rank's part of the measurement.

    Args:
        workload: the network and batch that every baseline trains.
        rank_store: tells all ranks whether a baseline can run.
        steps: timed steps in a turn.
    """

    def __init__(self, workload: Workload, rank_store: RankStore, steps: int) -> None:
        self._workload = workload
        self._rank_store = rank_store
        self._steps = steps

    def run(self, found: Sequence[Contestant], runs: int) -> list[RankResult]:
        """Run the entries as A B C, A B C, ...; in a turn before these, only memory is measured."""
        results = [self._prepare(entry, number) for number, entry in enumerate(found)]
        for _ in range(runs):
            for entry, result in zip(found, results, strict=True):
                if not result.reason:
                    seconds, spent = self._turn(entry)
                    result.seconds.append(seconds)
                    result.spent.append(spent)
        return results

    def _prepare(self, entry: Contestant, number: int) -> RankResult:
        result = RankResult()
        _ = self._workload.batch  # shared: allocated before memory is counted
        torch.set_num_threads(entry.threads)
        with Footprint(self._workload.rank_info.device) as footprint:
            result.reason = self._attempt(entry, entry.baseline.setup, f"ready/{number}")
            if result.reason:
                return result
            footprint.made()
            result.reason = self._attempt(entry, partial(self._turn, entry), f"tried/{number}")
            if result.reason:
                return result
        if self._workload.config.compile:  # warm up: counting tensors turns compilation off
            self._turn(entry)
        result.peak, result.resident = footprint.peak, footprint.resident
        if isinstance(entry.baseline, LocalPipeline):
            result.flops = entry.baseline.flops()
        return result

    def _attempt(self, entry: Contestant, work: Callable[[], object], topic: str) -> str:
        """Return why the baseline cannot run on some rank; "" if all ranks can run it."""
        reason = ""
        try:
            work()
        except UnavailableError as error:
            reason = str(error)
        except torch.OutOfMemoryError as error:
            if entry.ranks > 1:  # the other ranks would wait for this one
                raise
            reason = f"out of memory: {first_line(error)}"
        if reason and self._workload.rank_info.device.type != "cpu":
            torch.accelerator.empty_cache()  # leave the memory to the next baseline
        self._rank_store.set(topic, {"reason": reason})
        answers = self._rank_store.gather(topic, COLLECTIVE_TIMEOUT)
        return next((answer["reason"] for answer in answers if answer["reason"]), "")

    def _turn(self, entry: Contestant) -> tuple[float, dict[str, float]]:
        """Return the seconds of the timed steps, and those of them that were `busy` or `waited`."""
        baseline, device = entry.baseline, self._workload.rank_info.device
        torch.set_num_threads(entry.threads)
        baseline.begin(self._steps + 1)
        _meet(self._workload.rank_info)
        baseline.step()
        settle(device)
        before, begin = baseline.seconds(), time.perf_counter()
        for _ in range(self._steps):
            baseline.step()
        settle(device)
        seconds = time.perf_counter() - begin
        spent = {name: value - before[name] for name, value in baseline.seconds().items()}
        baseline.end()
        return seconds, spent


def _meet(rank_info: RankInfo) -> None:
    """A barrier of all ranks on the CPU, whichever transport the baselines use."""
    if rank_info.world_size > 1:
        dist.all_reduce(torch.zeros(1))
