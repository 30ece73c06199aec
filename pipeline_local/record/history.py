"""What a run has measured: the lines of all stages' metrics files, in order of time.

A run that goes on from a checkpoint abandons what came after it, of which the files keep the lines.
"""

import heapq
from collections.abc import Iterator
from contextlib import suppress
from datetime import datetime
from pathlib import Path

from pipeline_local.record import environment
from pipeline_local.record.folder import RunFolder
from pipeline_local.record.lines import read
from pipeline_local.user_input.json_text import Facts


def lines(folder: RunFolder, mark: str = "") -> Iterator[Facts]:
    """Yields the lines of all metrics files of a run, without those of work that it has abandoned.

    Args:
        folder: of the run.
        mark: only lines with this text are read.
    """
    files = sorted(folder.metrics(0).parent.glob("stage-*.jsonl"))
    later = list(_later_starts(folder))
    for facts in heapq.merge(*(_lines(file, mark) for file in files), key=_time):
        time = _time(facts)  # earlier versions have written none
        if not any(0 < time < begun and facts["step"] > step for begun, step in later):
            yield facts


def evaluations(folder: RunFolder) -> Iterator[Facts]:
    """Yields those of evaluations."""
    return lines(folder, '"event": "test"')


def _lines(file: Path, mark: str) -> Iterator[Facts]:
    for line in file.read_text(encoding="utf-8", errors="replace").splitlines():
        if mark in line and (facts := read(line)) is not None:
            yield facts


def _time(facts: Facts) -> float:
    return facts.get("time") or 0.0


def _later_starts(folder: RunFolder) -> Iterator[tuple[float, int]]:
    """The times of all starts but the first, and the steps that were done before.

    Clocks of hosts differ: where a run has started once, no line may be taken for an older one.
    """
    for start in environment.load(folder.environment)[1:]:
        with suppress(KeyError, TypeError, ValueError):  # of a file that is not as written
            yield datetime.fromisoformat(start["started"]).timestamp(), int(start["step"])
