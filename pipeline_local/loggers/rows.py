"""From the lines of all stages' metrics files to rows: one for each event, with the curves of all
modules."""

from collections import defaultdict
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline_local.record import lines
from pipeline_local.user_input.json_text import Facts

_WHOLE_RUN = ("lr", "samples_per_second")
"""Values of the run, which the first stage gives; all others are those of its stage."""
_PLACE = ("event", "stage", "step", "epoch", "time", "modules")


@dataclass(frozen=True)
class LogRow:
    """What a logger gets at once.

    Attributes:
        step: the optimizer steps done.
        time: seconds of Unix.
        values: numbers by the names of their curves, such as `loss/module_1`.
    """

    step: int
    time: float
    values: dict[str, float]


class Tail:
    """The new lines of the metrics files, joined to rows once every stage has written its own.

    Args:
        files: of all stages in order, with the bytes that are there already.
    """

    def __init__(self, files: Mapping[str, int]) -> None:
        self._read = {Path(path): size for path, size in files.items()}
        self._waiting: dict[tuple[int, str], dict[Path, Facts]] = defaultdict(dict)

    def rows(self) -> Iterator[LogRow]:
        """Yield the rows that have become complete since the last call, in order of their steps."""
        for path in self._read:
            for facts in self._new(path):
                # "test" after "train" of the same step, as in the files
                self._waiting[facts["step"], str(facts["event"])][path] = facts
        for key in [key for key, found in self._waiting.items() if len(found) == len(self._read)]:
            found = self._waiting.pop(key)
            yield joined([found[path] for path in self._read])

    def _new(self, path: Path) -> Iterator[Facts]:
        """The facts of new whole lines; the file may not be there yet, or not to be read now."""
        with suppress(OSError), path.open("rb") as file:  # anew: other hosts write to it
            file.seek(self._read[path])
            for line in file:
                if not line.endswith(b"\n"):
                    return
                self._read[path] += len(line)
                if (facts := lines.read(line)) is not None:
                    yield facts


def joined(stages: list[Facts]) -> LogRow:
    """Return the row of one event.

    Args:
        stages: the lines of all stages, in order. Test scores get the prefix `test_`; a number that
            was not finite, which the lines hold as null, is left out.
    """
    first = stages[0]
    prefix = "test_" if first["event"] == "test" else ""
    values = {name: first[name] for name in ("epoch", *_WHOLE_RUN) if name in first}
    for facts in stages:
        for name, value in _of_stage(facts):
            values[f"{prefix}{name}/stage_{facts['stage']}"] = value
        for number, row in facts["modules"].items():
            values |= {f"{prefix}{name}/module_{number}": value for name, value in row.items()}
    numbers = {name: value for name, value in values.items() if isinstance(value, int | float)}
    return LogRow(first["step"], first["time"], numbers)


def _of_stage(facts: Facts) -> Iterator[tuple[str, Any]]:
    for name, value in facts.items():
        if isinstance(value, dict) and name not in _PLACE:  # seconds, by act
            yield from ((f"{name}_{act}", part) for act, part in value.items())
        elif name not in (*_PLACE, *_WHOLE_RUN):
            yield name, value
