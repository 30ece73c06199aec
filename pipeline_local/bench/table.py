"""What the harness has measured, as rows: a Markdown table for people, JSON for programs."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from statistics import mean, median

import torch

from pipeline_local import newfile
from pipeline_local.bench.harness import Measured, RankResult, measure
from pipeline_local.bench.request import Request
from pipeline_local.bench.timing import Times
from pipeline_local.config import Config
from pipeline_local.learning import heads
from pipeline_local.ranks.rank import RankInfo
from pipeline_local.record.metrics import as_json

REFERENCE = "1f1b"
"""What the others are compared with, if it ran; else the first that did."""


@dataclass(frozen=True)
class Row:
    """One peer; what does not apply or was not measured is None.

    Attributes:
        peer: its name.
        ranks: p, processes that work.
        microbatches: m, parts of the batch.
        overhead: eps, operations of the auxiliary heads over those of the network.
        step_seconds: median over the turns.
        spread: largest minus smallest turn, over the median.
        samples_per_second: of the median turn.
        ratio: samples/s over the reference's.
        peak_memory_bytes: of each rank that works: its device's allocator, or live storages (CPU).
        resident_peak_bytes: of each rank that works, growth of the process (CPU only).
        efficiency: throughput over that of the slowest stage with its neighbours cut off.
        waited: of each rank, the part of a step in which it waited in channels. For the slowest
            stage that is exposed communication, for others also imbalance.
        bubble_in_theory: see `pipelines.bubble`.
        bubble: one minus the part of a step in which a rank computes, mean of all ranks.
        reason: why there are no numbers; else "".
    """

    peer: str
    ranks: int
    microbatches: int
    overhead: float | None = None
    step_seconds: float | None = None
    spread: float | None = None
    samples_per_second: float | None = None
    ratio: float | None = None
    peak_memory_bytes: list[int] | None = None
    resident_peak_bytes: list[int] | None = None
    efficiency: float | None = None
    waited: list[float] | None = None
    bubble_in_theory: float | None = None
    bubble: float | None = None
    reason: str = ""


def report(config: Config, rank_info: RankInfo, request: Request) -> str:
    """Measure, write the rows as JSON if asked, and give a Markdown table under its setting.

    Returns:
        The text on the first rank; "" on all others.

    Raises:
        UserError: the configuration and the ranks do not fit together.
    """
    measured = measure(config, rank_info, request)
    if rank_info.rank > 0:
        return ""
    found = rows(measured, config.data.batch_size, request.steps)
    facts = setting(config, rank_info, request)
    if request.output is not None:
        text = as_json({**facts, "rows": list(map(asdict, found))}, indent=2) + "\n"
        newfile.write("--json", request.output, text)
    return f"{', '.join(f'{key} {value}' for key, value in facts.items())}\n\n{markdown(found)}"


def setting(config: Config, rank_info: RankInfo, request: Request) -> dict[str, str | int]:
    """What the numbers belong to."""
    reconcile = config.reconcile
    return {
        "model": config.model.name,
        "batch": config.data.batch_size,
        "modules": config.modules.known_count or str(config.modules.cuts),
        "head": heads.title(config.head),
        "reconcile": f"{reconcile.estimator} every {reconcile.every}, {reconcile.direction}",
        "precision": config.precision,
        "wire": config.parallel.wire_dtype or config.precision,
        "ranks": rank_info.world_size,
        "device": "cpu" if rank_info.device.type == "cpu" else rank_info.device_name,
        "threads": rank_info.threads(config.parallel),
        "torch": torch.__version__,
        "deepspeed": _version("deepspeed"),
        "runs": request.runs,
        "steps": request.steps,
    }


def rows(measured: Sequence[Measured], batch_size: int, steps: int) -> list[Row]:
    """A row for each peer.

    Args:
        measured: of all entries.
        batch_size: samples of a step.
        steps: timed ones of a turn.
    """
    seconds = {one.entry.name: _times(one) for one in measured if _ran(one)}
    alone = {o.entry.alone: seconds[o.entry.name] for o in measured if o.entry.alone and _ran(o)}
    ran = [one for one in measured if _ran(one) and not one.entry.alone]
    first = next((one for one in ran if one.entry.name == REFERENCE), ran[0] if ran else None)
    reference = None if first is None else _times(first).median
    return [
        _row(one, batch_size, steps, reference, alone.get(one.entry.name))
        for one in measured
        if not one.entry.alone
    ]


def _row(
    one: Measured, batch_size: int, steps: int, reference: float | None, alone: Times | None
) -> Row:
    entry = one.entry
    plain = Row(entry.name, entry.ranks, entry.microbatches, reason=one.results[0].reason)
    if not _ran(one) or reference is None:
        return plain
    times, results = _times(one), one.results[: entry.ranks]
    resident = [result.resident for result in results if result.resident is not None]
    return Row(
        peer=entry.name,
        ranks=entry.ranks,
        microbatches=entry.microbatches,
        overhead=_overhead(results),
        step_seconds=times.median / steps,
        spread=times.spread,
        samples_per_second=batch_size * steps / times.median,
        ratio=reference / times.median,
        peak_memory_bytes=[result.peak or 0 for result in results],
        resident_peak_bytes=resident or None,
        efficiency=None if alone is None else alone.median / times.median,
        waited=_shares(results, times, "waited"),
        bubble_in_theory=entry.bubble_in_theory,
        bubble=_bubble(results, times),
    )


def _ran(one: Measured) -> bool:
    return bool(one.results[0].seconds)


def _times(one: Measured) -> Times:
    """Of each turn, the slowest rank's."""
    return Times(tuple(map(max, zip(*(result.seconds for result in one.results), strict=True))))


def _overhead(results: Sequence[RankResult]) -> float | None:
    counted = [result.flops for result in results if result.flops is not None]
    network = sum(own for _, own in counted)
    return sum(auxiliary for auxiliary, _ in counted) / network if network else None


def _shares(results: Sequence[RankResult], times: Times, what: str) -> list[float] | None:
    """Of each rank, the part of a turn that went there (median)."""
    if any(what not in spent for result in results for spent in result.spent):
        return None
    return [
        median(
            spent[what] / seconds
            for spent, seconds in zip(result.spent, times.seconds, strict=True)
        )
        for result in results
    ]


def _bubble(results: Sequence[RankResult], times: Times) -> float | None:
    busy = _shares(results, times, "busy")
    return None if busy is None else 1 - mean(busy)


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "none"


def markdown(found: Sequence[Row]) -> str:
    """The rows as a table; a peer that could not run says why instead."""
    compared = next((row.peer for row in found if row.ratio == 1), "")
    lines = [
        f"| peer | p | m | eps | ms per step | spread | samples/s | over {compared} |"
        " peak memory per rank, MB (process grew) | efficiency | waited per rank |"
        " bubble (theory) |",
        "|---|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    return "\n".join([*lines, *map(_line, found)])


def _line(row: Row) -> str:
    if row.step_seconds is None or row.spread is None or row.samples_per_second is None:
        cells = [row.peer, str(row.ranks), str(row.microbatches), "", row.reason, *[""] * 7]
        return f"| {' | '.join(cells)} |"
    theory = _percent(row.bubble_in_theory)
    cells = [
        row.peer,
        str(row.ranks),
        str(row.microbatches),
        _percent(row.overhead),
        f"{1000 * row.step_seconds:.1f}",
        _percent(row.spread),
        f"{row.samples_per_second:.1f}",
        f"{row.ratio:.2f}x",
        _memory(row),
        _percent(row.efficiency),
        ", ".join(map(_percent, row.waited or ())),
        f"{_percent(row.bubble)} ({theory})" if theory else "",
    ]
    return f"| {' | '.join(cells)} |"


def _memory(row: Row) -> str:
    counted, resident = (
        ", ".join(f"{size / 1e6:.{digits}f}" for size in sizes or ())
        for sizes, digits in ((row.peak_memory_bytes, 1), (row.resident_peak_bytes, 0))
    )
    return f"{counted} ({resident})" if resident else counted


def _percent(part: float | None) -> str:
    return "" if part is None else f"{part:.1%}"
