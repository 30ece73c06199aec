"""What differs between runs: results, configuration, versions and machines."""

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline_local.console.screen import Screen, new_table, say
from pipeline_local.report.run import NONE, RecordedRun, read

Value = Any
"""Any value of JSON."""


@dataclass(frozen=True)
class ComparisonRow:
    """Something of each run.

    Attributes:
        name: what it is.
        values: one for each run; None where a run does not have it.
        text: how a value is displayed.
    """

    name: str
    values: Sequence[Value]
    text: Callable[[Value], str]

    @property
    def differs(self) -> bool:
        """Whether the runs do not have the same."""
        return any(value != self.values[0] for value in self.values)

    @property
    def texts(self) -> list[str]:
        """The values for people."""
        return [NONE if value is None else self.text(value) for value in self.values]

    @property
    def change(self) -> str:
        """The last value less the first, in points of percent or as a part of the first."""
        first, last = self.values[0], self.values[-1]
        if not (_is_number(first) and _is_number(last)):
            return ""
        if self.text is percent:
            return f"{100 * (last - first):+.2f} points"
        return f"{last / first - 1:+.1%}" if first else ""


def show(paths: Sequence[Path]) -> None:
    """Prints a table of what differs between two runs.

    Raises:
        UserError: a folder is no run.
    """
    runs = read(paths)
    groups = {
        "results": results(runs),
        "configuration": settings(runs),
        "versions and machine": environment(runs),
    }
    table = new_table("What differs")
    table.add_column("")
    for run in runs:
        table.add_column(run.name, justify="right", overflow="fold")
    table.add_column("change", justify="right")
    for rows in groups.values():
        for row in filter(lambda row: row.differs, rows):
            table.add_row(row.name, *row.texts, row.change)
        table.add_section()
    if table.row_count:
        Screen().print(table)
    same = {name: sum(not row.differs for row in rows) for name, rows in groups.items()}
    parts = (f"{name} {count}" for name, count in same.items() if count)
    say(f"The same: {', '.join(parts) or 'nothing'}")


def results(runs: Sequence[RecordedRun]) -> list[ComparisonRow]:
    """Returns what the runs have reached: heads alone and together, losses, speed and memory."""
    finished = ["yes" if run.results is not None else "no" for run in runs]
    facts = [run.results or {} for run in runs]
    return [
        ComparisonRow("finished", finished, str),
        ComparisonRow("steps", [run.step for run in runs], str),
        *_scores(runs),
        ComparisonRow("samples/s", [run.samples_per_second for run in runs], number),
        ComparisonRow("seconds of training", [fact.get("seconds") for fact in facts], number),
        ComparisonRow("pipeline efficiency", [fact.get("efficiency") for fact in facts], number),
        *_memory(runs),
    ]


def settings(runs: Sequence[RecordedRun]) -> list[ComparisonRow]:
    """Returns the keys of the configurations; where a run is, is no setting."""
    names = dict.fromkeys(name for run in runs for name in run.settings)
    return [
        ComparisonRow(name, [_setting(run, name) for run in runs], str)
        for name in names
        if not name.startswith("run.")
    ]


def environment(runs: Sequence[RecordedRun]) -> list[ComparisonRow]:
    """Returns versions and machine of the newest start of each run."""
    newest = [run.starts[-1] if run.starts else {} for run in runs]
    names = dict.fromkeys(name for start in newest for name in start)
    return [
        ComparisonRow(name, [start.get(name) for start in newest], str)
        for name in names
        if name not in ("started", "step")
    ]


def percent(value: float) -> str:
    """Returns a fraction in percent."""
    return f"{value:.2%}"


def number(value: float) -> str:
    """Returns a number to four digits."""
    return f"{value:.4g}" if abs(value) < 1000 else f"{value:.0f}"


def _scores(runs: Sequence[RecordedRun]) -> Iterator[ComparisonRow]:
    heads = range(max((len(run.heads) for run in runs), default=0))
    for metric in {run.metric.name: run.metric for run in runs}.values():
        text = percent if metric.percent else number
        name = metric.name.replace("_", " ")
        for k in heads:
            yield ComparisonRow(f"{name}, head {k + 1}", _of_head(runs, k, metric.name), text)
        for k in heads[1:]:
            together = _of_head(runs, k, f"ensemble_{metric.name}")
            yield ComparisonRow(f"{name}, heads 1 to {k + 1}", together, text)
    for k in heads:
        yield ComparisonRow(f"test loss, head {k + 1}", _of_head(runs, k, "loss"), number)


def _of_head(runs: Sequence[RecordedRun], index: int, name: str) -> list[Value]:
    return [run.heads[index].get(name) if index < len(run.heads) else None for run in runs]


def _memory(runs: Sequence[RecordedRun]) -> Iterator[ComparisonRow]:
    for stage in range(max(len(run.memory) for run in runs)):
        name = " / ".join(dict.fromkeys(run.memory_name for run in runs))
        peaks = [run.memory[stage] if stage < len(run.memory) else None for run in runs]
        yield ComparisonRow(f"{name}, stage {stage}", peaks, lambda peak: f"{peak / 2**20:.0f} MiB")


def _setting(run: RecordedRun, name: str) -> str | None:
    """A value as YAML would have it; None where the run does not have the key."""
    if name not in run.settings:
        return None
    value = run.settings[name]
    return value if isinstance(value, str) else json.dumps(value, default=str)


def _is_number(value: Value) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
