"""The harness: all peers on one set of ranks, in turns, timed by the slowest rank.

A turn of a peer begins when all ranks are there. Its first step is not timed (it fills a pipeline,
and warms what another peer's turn has cooled); a rank's clock runs from the end of that step to the
end of the turn, and the longest of all ranks' intervals counts.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import partial

import torch
import torch.distributed as dist

from pipeline_local.bench.local import Alone, Local
from pipeline_local.bench.memory import Footprint
from pipeline_local.bench.peer import Absent, Peer, Setting, UnavailableError
from pipeline_local.bench.peers import PIPELINED, REPLICATED, WHOLE
from pipeline_local.bench.pipelines import bubble
from pipeline_local.bench.request import Request
from pipeline_local.config import Config
from pipeline_local.data.datasets import describe
from pipeline_local.placement.draw import draw
from pipeline_local.ranks.p2p import P2PKind
from pipeline_local.ranks.p2p import common as common_kind
from pipeline_local.ranks.rank import TIMEOUT, RankInfo, joined
from pipeline_local.record.metrics import settle
from pipeline_local.watch.store import RankStore

RECONCILED = "local, reconciled"
"""The row with the configuration's own reconciliation."""


@dataclass(frozen=True)
class Entry:
    """A peer that takes turns.

    Attributes:
        name: of its row.
        ranks: as many work.
        microbatches: of its steps.
        peer: this rank's part of it.
        threads: of each rank that works.
        alone: the row whose stages this measures without their neighbours; "" for a row.
    """

    name: str
    ranks: int
    microbatches: int
    peer: Peer
    threads: int
    alone: str = ""

    @property
    def bubble_in_theory(self) -> float | None:
        """Of pipelines that fill and drain in every step."""
        return bubble(self.name, self.ranks, self.microbatches)


@dataclass
class RankResult:
    """What one rank has measured of one peer.

    Attributes:
        seconds: of each turn.
        spent: of each turn, where they went: busy, waited.
        peak: bytes of memory.
        resident: bytes by which the process grew at most.
        flops: of auxiliary heads and of the network, on this rank.
        reason: why there is nothing; else "".
    """

    seconds: list[float] = field(default_factory=list)
    spent: list[dict[str, float]] = field(default_factory=list)
    peak: int | None = None
    resident: int | None = None
    flops: tuple[int, int] | None = None
    reason: str = ""


@dataclass(frozen=True)
class Measured:
    """One peer and what all ranks have measured of it."""

    entry: Entry
    results: list[RankResult]


def measure(config: Config, rank_info: RankInfo, request: Request) -> list[Measured]:
    """Let all peers take turns; all ranks call it together, and all get every rank's results.

    Raises:
        UserError: the configuration and the ranks do not fit together.
    """
    rank_info.prepare(config.parallel)
    with joined(rank_info, rank_info.group_backend(config.parallel)) as store:
        rank_store = RankStore(store, rank_info.rank, rank_info.world_size)
        rank_store.set("wire", {"kind": rank_info.p2p_kind(config.parallel)})
        kind: P2PKind = common_kind([facts["kind"] for facts in rank_store.gather("wire", TIMEOUT)])
        setting = Setting(draw(config, describe(config.data)), rank_info, kind)
        found = entries(setting, request)
        results = Turns(setting, rank_store, request.steps).run(found, request.runs)
        rank_store.set("results", {"results": [vars(result) for result in results]})
        gathered = rank_store.gather("results", TIMEOUT)
        _meet(rank_info)  # the store lives as long as the first rank
    columns = zip(
        *[[RankResult(**result) for result in facts["results"]] for facts in gathered], strict=True
    )
    return [Measured(e, list(column)) for e, column in zip(found, columns, strict=True)]


def entries(setting: Setting, request: Request) -> list[Entry]:
    """A row for each peer, for pipelines one for each number of microbatches."""
    return [entry for name in request.peers for entry in _entries(setting, request, name)]


def _entries(setting: Setting, request: Request, name: str) -> Iterator[Entry]:
    ranks = setting.rank_info.world_size
    threads = setting.rank_info.threads(setting.config.parallel)
    if name in WHOLE:
        whole = threads * setting.rank_info.local_world_size
        yield Entry(name, 1, 1, WHOLE[name](setting, 1), whole)
    elif name in REPLICATED:
        yield Entry(name, ranks, 1, REPLICATED[name](setting, 1), threads)
    elif name in PIPELINED:
        for count in request.microbatches:
            yield Entry(name, ranks, count, PIPELINED[name](setting, count), threads)
    else:
        yield from _local(setting, threads)


def _local(setting: Setting, threads: int) -> Iterator[Entry]:
    ranks, count = setting.rank_info.world_size, setting.config.train.microbatches
    own = setting.config.reconcile
    for name, reconcile in (("local", replace(own, weight=0.0)), (RECONCILED, own)):
        if name == RECONCILED and own.weight == 0:
            yield Entry(name, ranks, count, Absent("reconcile.weight is 0"), threads)
            continue
        yield Entry(name, ranks, count, Local(setting, reconcile), threads)
        if ranks > 1:
            peer = Alone(setting, reconcile)
            yield Entry(f"{name}, stages alone", ranks, count, peer, threads, alone=name)


class Turns:
    """One rank's share of the measurement.

    Args:
        setting: of the comparison.
        rank_store: where the ranks agree on what can run.
        steps: timed ones of a turn.
    """

    def __init__(self, setting: Setting, rank_store: RankStore, steps: int) -> None:
        self._setting = setting
        self._rank_store = rank_store
        self._steps = steps

    def run(self, found: Sequence[Entry], runs: int) -> list[RankResult]:
        """A B C, A B C, ...: after one untimed turn of each, in which memory is counted."""
        results = [self._prepare(entry, number) for number, entry in enumerate(found)]
        for _ in range(runs):
            for entry, result in zip(found, results, strict=True):
                if not result.reason:
                    seconds, spent = self._turn(entry)
                    result.seconds.append(seconds)
                    result.spent.append(spent)
        return results

    def _prepare(self, entry: Entry, number: int) -> RankResult:
        result = RankResult()
        _ = self._setting.batch  # everybody's: there before anything is counted
        torch.set_num_threads(entry.threads)
        with Footprint(self._setting.rank_info.device) as footprint:
            result.reason = self._attempt(entry, entry.peer.setup, f"ready/{number}")
            if result.reason:
                return result
            footprint.made()
            result.reason = self._attempt(entry, partial(self._turn, entry), f"tried/{number}")
            if result.reason:
                return result
        if self._setting.config.compile:  # other code than while a CPU's tensors were counted
            self._turn(entry)
        result.peak, result.resident = footprint.peak, footprint.resident
        if isinstance(entry.peer, Local):
            result.flops = entry.peer.flops()
        return result

    def _attempt(self, entry: Entry, work: Callable[[], object], topic: str) -> str:
        """Why the peer cannot run, on whichever rank; "" if it can."""
        reason = ""
        try:
            work()
        except UnavailableError as error:
            reason = str(error)
        except torch.OutOfMemoryError as error:
            if entry.ranks > 1:  # the others are at work, and wait for this one
                raise
            reason = f"out of memory: {str(error).splitlines()[0]}"
        if reason and self._setting.rank_info.device.type != "cpu":
            torch.accelerator.empty_cache()  # for those who come after it
        self._rank_store.set(topic, {"reason": reason})
        answers = self._rank_store.gather(topic, TIMEOUT)
        return next((answer["reason"] for answer in answers if answer["reason"]), "")

    def _turn(self, entry: Entry) -> tuple[float, dict[str, float]]:
        """Seconds of the timed steps, and what the peer knows of them."""
        peer, device = entry.peer, self._setting.rank_info.device
        torch.set_num_threads(entry.threads)
        peer.begin(self._steps + 1)
        _meet(self._setting.rank_info)
        peer.step()
        settle(device)
        before, begin = peer.seconds(), time.perf_counter()
        for _ in range(self._steps):
            peer.step()
        settle(device)
        seconds = time.perf_counter() - begin
        spent = {name: value - before[name] for name, value in peer.seconds().items()}
        peer.end()
        return seconds, spent


def _meet(rank_info: RankInfo) -> None:
    """A barrier over CPUs, whatever else the ranks talk by."""
    if rank_info.world_size > 1:
        dist.all_reduce(torch.zeros(1))
