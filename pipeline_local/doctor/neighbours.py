"""Checks that ranks make together, under a launcher: their clocks, their links, their hosts."""

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, replace
from datetime import timedelta
from threading import Thread
from typing import Any

import torch
import torch.distributed as dist

from pipeline_local.config import ParallelConfig
from pipeline_local.doctor.finding import Finding, failed, passed, warned
from pipeline_local.errors import RefusedElsewhereError, counted
from pipeline_local.placement.costs import Link
from pipeline_local.planning.measure_link import LinkBenchmark
from pipeline_local.ranks import p2p
from pipeline_local.ranks.join import joined
from pipeline_local.ranks.rank import RankInfo
from pipeline_local.user_input.json_text import Facts
from pipeline_local.watch.store import RankStore

NAME = "ranks"
"""The check of which every rank reports its own failures."""
SOFTWARE = ("python", "libraries", "backends")
"""Checks that are to find the same on all hosts."""
LIMIT_SECONDS = 300.0
"""Longest time for all of it. A firewall that drops packets looks like a rank that is late."""
CLOCK_ROUNDS = 10
MOST_SKEW = 1.0
"""Seconds. The lease of a run folder and the times in metrics compare the clocks of hosts."""
SLOW_BYTES_PER_SECOND, SLOW_LATENCY = 12.5e6, 0.02
"""100 Mb/s and 20 ms: what cost local learning nothing (docs/results/scale.md)."""
_MESSAGE_BYTES, _RUNS = 2**22, 10


def together(rank_info: RankInfo, own: Sequence[Finding]) -> Iterator[Finding]:
    """Measure clocks and links with all other ranks, and compare the hosts; all ranks call it.

    Args:
        rank_info: this rank.
        own: what the checks of this process have found.

    Yields:
        On the first rank what concerns all of them; on the others only what keeps them from
        taking part.
    """
    try:
        at, reports = _within(LIMIT_SECONDS, lambda at: _measured(rank_info, own, at))
    except RefusedElsewhereError:  # the first rank of this host reports it
        return
    if reports is None:
        found = f"no end of {at!r} within {LIMIT_SECONDS:.0f} s"
        remedy = "start all ranks, let hosts connect to each other on all ports, and name the"
        yield failed(found, f"{remedy} interface that they share in GLOO_SOCKET_IFNAME")
    elif rank_info.rank == 0:
        found = f"{counted(len(reports), 'rank')} over {reports[0]['kind']}"
        yield passed(found, ranks=len(reports), kind=reports[0]["kind"])
        yield _clocks(reports)
        yield from map(_link, range(1, len(reports)), reports[1:])
        yield from _other_hosts(reports)


def _within(seconds: float, work: Callable[[list[str]], Any]) -> tuple[str, Any]:
    """Run work in a thread that may be left behind.

    Returns:
        What it was doing last, and its result; None if it is late.
    """
    at = [""]
    result: list[tuple[Any, Exception | None]] = []

    def run() -> None:
        try:
            result.append((work(at), None))
        except Exception as error:  # for the thread that waits
            result.append((None, error))

    thread = Thread(target=run, daemon=True)
    thread.start()
    thread.join(seconds)
    if not result:
        return at[0], None
    value, error = result[0]
    if error is not None:
        raise error
    return at[0], value


def _measured(rank_info: RankInfo, own: Sequence[Finding], at: list[str]) -> list[Facts]:
    """The reports of all ranks; an empty list on all but the first one.

    Args:
        rank_info: this rank.
        own: what it has found alone.
        at: its only item is set to what is being done.
    """
    config = ParallelConfig(threads=1)
    limit = timedelta(seconds=LIMIT_SECONDS)
    at[0] = "connecting all ranks"
    with joined(rank_info) as store:
        rank_info = rank_info.on_host(store).placed(config)
        rank_info.prepare(config)  # the device of this thread
        ranks = RankStore(store, rank_info.rank, rank_info.world_size)
        ranks.set("kind", {"kind": rank_info.p2p_kind(config)})
        kind = p2p.common([facts["kind"] for facts in ranks.gather("kind", limit)])
        at[0] = "comparing clocks"
        skew, error = _skew(store, rank_info)
        at[0] = f"sending to the next rank over {kind}"
        link = _benchmark(rank_info, kind).between_ranks(rank_info.rank, rank_info.world_size)
        report = {"kind": kind, "skew": skew, "error": error, "link": asdict(link)}
        found = [asdict(finding) for finding in own] if rank_info.local_rank == 0 else []
        ranks.set("report", {**report, "own": found})
        at[0] = "waiting for all reports"
        return ranks.gather("report", limit) if rank_info.rank == 0 else []


def _benchmark(rank_info: RankInfo, kind: p2p.P2PKind) -> LinkBenchmark:
    if not p2p.by_device(kind):
        return LinkBenchmark(_MESSAGE_BYTES, _RUNS, torch.device("cpu"))
    limit = timedelta(seconds=LIMIT_SECONDS)
    group: Any = dist.new_group(backend=p2p.device_backend(rank_info.device), timeout=limit)
    return LinkBenchmark(_MESSAGE_BYTES, _RUNS, rank_info.device, group)


def _skew(store: dist.Store, rank_info: RankInfo) -> tuple[float, float]:
    """Seconds that the first rank's clock is ahead of this one's, and by how much that may be off.

    It was read somewhere within a round trip through the store, so the shortest trip says most.
    """
    turns = range(CLOCK_ROUNDS)
    if rank_info.rank > 0:
        trips = [_round_trip(store, f"clock/{rank_info.rank}/{turn}") for turn in turns]
        error, skew = min(trips[1:])  # in the first one the others had their turns
        return skew, error
    for rank in range(1, rank_info.world_size):
        for turn in turns:
            store.get(f"clock/{rank}/{turn}/asked")
            store.set(f"clock/{rank}/{turn}/answer", repr(time.time()))
    return 0.0, 0.0


def _round_trip(store: dist.Store, key: str) -> tuple[float, float]:
    """Half of its seconds, and by how much the other clock is ahead of its middle."""
    begin = time.time()
    store.set(f"{key}/asked", "")
    answer = float(store.get(f"{key}/answer"))
    half = (time.time() - begin) / 2
    return half, answer - begin - half


def _clocks(reports: Sequence[Facts]) -> Finding:
    rank = max(range(1, len(reports)), key=lambda rank: abs(reports[rank]["skew"]))
    skew, error = reports[rank]["skew"], reports[rank]["error"]
    found = f"rank {rank} differs most from rank 0: {1e3 * skew:+.2f} ms, +- {1e3 * error:.2f} ms"
    values = {"skews": [report["skew"] for report in reports]}
    if abs(skew) - error > MOST_SKEW:
        finding = warned(found, "synchronise the hosts' clocks (chrony, NTP)", **values)
    else:
        finding = passed(found, **values)
    return replace(finding, name="clocks")


def _link(rank: int, report: Facts) -> Finding:
    link = Link(**report["link"])
    latency, rate = link.latency_seconds, link.bytes_per_second
    found = f"{rank - 1} -> {rank}: {latency * 1e6:.0f} us, {rate / 1e6:.0f} MB/s"
    values = {"upstream": rank - 1, **report["link"]}
    if link.at_least:
        found = f"{found} or more, as a large message took no longer than a byte"
        finding = warned(found, "end what else these hosts compute, and try again", **values)
    elif latency > SLOW_LATENCY or rate < SLOW_BYTES_PER_SECOND:
        remedy = "name a faster interface in GLOO_SOCKET_IFNAME, or ask `pipeline-local simulate`"
        finding = warned(found, f"{remedy} what this link costs", **values)
    else:
        finding = passed(found, **values)
    return replace(finding, name="link")


def _other_hosts(reports: Sequence[Facts]) -> Iterator[Finding]:
    """Warnings and failures of the other hosts that rank 0 has not, and other versions."""
    first = [Finding(**facts) for facts in reports[0]["own"]]
    for rank, report in enumerate(reports[1:], start=1):
        for finding in (Finding(**facts) for facts in report["own"]):
            if finding in first or (finding.status == "PASS" and finding.name not in SOFTWARE):
                continue
            if finding.status == "PASS":
                remedy = "install the same versions on all hosts"
                finding = replace(finding, status="WARN", remedy=remedy)
            yield replace(finding, name=f"{finding.name}, rank {rank}")
