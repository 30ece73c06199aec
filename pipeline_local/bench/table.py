"""The results of `pipeline-local bench baselines`: a Markdown table, and JSON rows."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from importlib.metadata import PackageNotFoundError, version
from statistics import mean, median
from typing import Any

import torch

from pipeline_local.bench.harness import Measured, RankResult, measure
from pipeline_local.bench.options import BenchOptions
from pipeline_local.bench.timing import Times
from pipeline_local.config import Config
from pipeline_local.console.screen import markdown_table
from pipeline_local.learning import heads
from pipeline_local.ranks.rank import RankInfo
from pipeline_local.user_input import new_file

REFERENCE = "1f1b"
"""The method that ratios are relative to; where it did not run, the first one that did."""


@dataclass(frozen=True)
class BaselineRow:
    """The results of one method; what does not apply or was not measured is None.

    Attributes:
        method: name of the baseline, or local.
        ranks: p, the number of processes that compute.
        microbatches: m, the number of parts of the batch; of pipelines side by side, of the share
            of each.
        overhead: eps, FLOPs of the auxiliary heads over those of the network.
        step_seconds: seconds of a step, the median over the turns.
        spread: slowest minus fastest turn, over the median.
        samples_per_second: throughput of the median turn.
        ratio: throughput over the reference's.
        peak_memory_bytes: peak of each rank: its device's allocator, or live storages on a CPU.
        resident_peak_bytes: growth of each rank's process (CPU only).
        efficiency: throughput over that of the slowest stage without neighbours.
        waited: fraction of a step in which each rank waited in channels: exposed communication, and
            for all but the slowest stage also imbalance.
        bubble_in_theory: idle fraction by `bubbles.bubble`.
        bubble: measured idle fraction, the mean over the ranks.
        turns: seconds of a step in each turn. Methods take turns, so on a noisy machine compare
            them turn by turn.
        reason: why there are no numbers; else "".
    """

    method: str
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
    turns: list[float] | None = None
    reason: str = ""


def report(config: Config, rank_info: RankInfo, request: BenchOptions) -> str:
    """Measure, write the rows as JSON if asked, and return a Markdown table with its settings.

    All ranks call it together.

    Returns:
        The text on the first rank; "" on all others.

    Raises:
        UserError: the configuration does not fit these ranks, or the file cannot be written.
    """
    measured = measure(config, rank_info, request)
    if rank_info.rank > 0:
        return ""
    found = rows(measured, config.data.batch_size, request.steps)
    threads = min(one.entry.threads for one in measured)  # of one rank, where several compute
    facts = setting(config, rank_info, request, threads)
    if request.output is not None:
        new_file.write_json("--json", request.output, {**facts, "rows": [*map(_fields, found)]})
    return f"{', '.join(f'{key} {value}' for key, value in facts.items())}\n\n{markdown(found)}"


def setting(
    config: Config, rank_info: RankInfo, request: BenchOptions, threads: int
) -> dict[str, str | int]:
    """Return the model, machine and options that the numbers were measured with."""
    reconcile = config.reconcile
    return {
        "model": config.model.name,
        "batch": config.data.batch_size,
        "modules": config.modules.known_count or str(config.modules.cuts),
        "head": " + ".join(filter(None, (heads.title(config.head), config.information.name))),
        "reconcile": f"{reconcile.estimator} every {reconcile.every}, {reconcile.direction}",
        **({"distill": f"every {config.distill.every}"} if config.distill.weight else {}),
        "precision": config.precision,
        "wire": config.parallel.wire_dtype or config.precision,
        "ranks": rank_info.world_size,
        "device": "cpu" if rank_info.device.type == "cpu" else rank_info.device_name,
        "threads": threads,
        "torch": torch.__version__,
        "deepspeed": _version("deepspeed"),
        "runs": request.runs,
        "steps": request.steps,
    }


def rows(measured: Sequence[Measured], batch_size: int, steps: int) -> list[BaselineRow]:
    """Return a row for each method.

    Args:
        measured: the results of all entries.
        batch_size: samples in a step.
        steps: timed steps in a turn.
    """
    seconds = {one.entry.name: _times(one) for one in measured if _ran(one)}
    isolated = {
        o.entry.isolates: seconds[o.entry.name] for o in measured if o.entry.isolates and _ran(o)
    }
    ran = [one for one in measured if _ran(one) and not one.entry.isolates]
    first = next((one for one in ran if one.entry.name == REFERENCE), ran[0] if ran else None)
    reference = None if first is None else _times(first).median
    return [
        _row(one, batch_size, steps, reference, isolated.get(one.entry.name))
        for one in measured
        if not one.entry.isolates
    ]


def _fields(row: BaselineRow) -> dict[str, Any]:
    """All fields; `peer` is what files called `method` before."""
    return {**asdict(row), "peer": row.method}


def _row(
    one: Measured, batch_size: int, steps: int, reference: float | None, isolated: Times | None
) -> BaselineRow:
    entry = one.entry
    row = BaselineRow(entry.name, entry.ranks, entry.microbatches, reason=one.results[0].reason)
    if not _ran(one) or reference is None:
        return row
    times, results = _times(one), one.results[: entry.ranks]
    resident = [result.resident for result in results if result.resident is not None]
    return replace(
        row,
        overhead=_overhead(results),
        step_seconds=times.median / steps,
        spread=times.spread,
        samples_per_second=batch_size * steps / times.median,
        ratio=reference / times.median,
        peak_memory_bytes=[result.peak or 0 for result in results],
        resident_peak_bytes=resident or None,
        efficiency=None if isolated is None else isolated.median / times.median,
        waited=_shares(results, times, "waited"),
        bubble_in_theory=entry.bubble_in_theory,
        bubble=_bubble(results, times),
        turns=[seconds / steps for seconds in times.seconds],
    )


def _ran(one: Measured) -> bool:
    return bool(one.results[0].seconds)


def _times(one: Measured) -> Times:
    """The seconds of the slowest rank in each turn."""
    return Times(tuple(map(max, zip(*(result.seconds for result in one.results), strict=True))))


def _overhead(results: Sequence[RankResult]) -> float | None:
    counted = [result.flops for result in results if result.flops is not None]
    network = sum(own for _, own in counted)
    return sum(auxiliary for auxiliary, _ in counted) / network if network else None


def _shares(results: Sequence[RankResult], times: Times, what: str) -> list[float] | None:
    """For each rank, the fraction of a turn that it was busy or waited (median over the turns)."""
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


def markdown(found: Sequence[BaselineRow]) -> str:
    """Return the rows as a table; a method that could not run has a reason instead of numbers."""
    reference = next((row.method for row in found if row.ratio == 1), "")
    columns = [
        *("method", "p", "m", "eps", "ms per step", "spread", "samples/s", f"over {reference}"),
        *("peak memory per rank, MB (process growth)", "efficiency", "waited per rank"),
        "bubble (theory)",
    ]
    return markdown_table(columns, map(_cells, found))


def _cells(row: BaselineRow) -> list[str]:
    if row.step_seconds is None or row.spread is None or row.samples_per_second is None:
        return [row.method, str(row.ranks), str(row.microbatches), "", row.reason, *[""] * 7]
    theory = _percent(row.bubble_in_theory)
    return [
        row.method,
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


def _memory(row: BaselineRow) -> str:
    counted, resident = (
        ", ".join(f"{size / 1e6:.{digits}f}" for size in sizes or ())
        for sizes, digits in ((row.peak_memory_bytes, 1), (row.resident_peak_bytes, 0))
    )
    return f"{counted} ({resident})" if resident else counted


def _percent(part: float | None) -> str:
    return "" if part is None else f"{part:.1%}"
