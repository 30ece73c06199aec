"""The live view: one table of all stages on a terminal, redrawn on every logged step.

It shows what every stage has set in the store, and asks no stage for anything.
"""

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from itertools import zip_longest
from typing import Protocol

from rich.progress_bar import ProgressBar
from rich.table import Table

from pipeline_local.blueprint.blueprint import Blueprint
from pipeline_local.console import startup
from pipeline_local.console.footer import Footer
from pipeline_local.console.screen import Screen, draws, height, say, width
from pipeline_local.learning.tasks import Task
from pipeline_local.record.progress import Course, Progress, Quiet, Silent, by_module
from pipeline_local.user_input.json_text import Facts

_FRAME = 5
"""Rows besides those of modules: the bar, the heading of two rows, and two for other lines."""
_BAR = 16
_STAGE = ("stage", "rate", "busy", "wait\nup", "wait\ndown")
"""What a stage has one of, however many modules."""
_RESIDENT, _ALLOCATED = "process\nMiB", "tensors\nMiB"
"""What is known of the memory of a stage on a CPU, and on another device."""
_WIDE = 100
"""Columns from which on there is more space between those of the table."""


class Display(Protocol):
    """What shows a run to people."""

    def announce(self, lines: list[str]) -> None:
        """Print what is about to run, or how it has ended."""

    def show(self, stages: list[Facts], tests: list[Facts]) -> None:
        """Show the latest facts of all stages, of a training step and of an evaluation."""

    def close(self) -> None:
        """Leave what is shown last."""


class LiveView:
    """Shows the run as a bar and a table with a row for each module; for each stage, if the
    terminal has too few rows. Replica 1 of stage 0 is called 0.1, and has a row where there is
    room. Values are the newest that a stage has reported, so those of different stages may be of
    different steps.

    Args:
        course: of the run.
        stages: the modules of each stage, from 0.
        task: the task, which knows how its score is displayed.
    """

    def __init__(self, course: Course, stages: Sequence[range], task: Task) -> None:
        self._course = course
        self._stages = stages
        self._task = task
        self._footer = Footer()

    def announce(self, lines: list[str]) -> None:
        """Prints what is about to run, or how it has ended."""
        say("\n".join(lines))

    def show(self, stages: list[Facts], tests: list[Facts]) -> None:
        """Draws the latest facts of all stages over those before."""
        if not stages:
            return
        drawing = Screen().drawn(self._bar(stages[0]), self.table(stages, tests))
        self._footer.draw(drawing.splitlines())

    def close(self) -> None:
        """Leaves the last table as the last lines printed."""
        self._footer.close()

    def table(self, stages: list[Facts], tests: list[Facts]) -> Table:
        """Returns the table.

        Args:
            stages: facts of each stage's latest logged step.
            tests: of its latest evaluation.
        """
        trained, tested = by_module(stages), by_module(tests)
        metric = self._task.metric
        since = "" if not tests else f"\n(step {min(facts['step'] for facts in tests)})"
        table = Table(box=None, pad_edge=False, padding=(0, _space(), 0, 0))
        memory = _ALLOCATED if any("gpu_memory_bytes" in own for own in stages) else _RESIDENT
        named = ("module", "loss", metric.replace("_", " ") + since, "cosine", *_STAGE)
        for name in (*named, memory, "GPU"):
            table.add_column(name, justify="right")
        for stage, modules, own in self._rows(stages):
            row, score = (rows.get(modules.stop, {}) for rows in (trained, tested))
            left = [
                _span(modules),
                _cell(row, "loss", "{:.3f}".format),
                _cell(score, metric, partial(self._task.score_text, digits=1)),
                _cell(row, "cosine", "{:+.2f}".format),
            ]
            right = self._of_stage(stage, own) if own is not None else ()
            table.add_row(*(left if modules else [""] * len(left)), *right)
        return table

    def _rows(self, stages: list[Facts]) -> Iterator[tuple[int, range, Facts | None]]:
        """Yields, for each row, the stage, the modules whose last one it is of, and what one of
        the stage's ranks has reported: the modules on one side, the replicas on the other."""
        parts = [[range(k, k + 1) for k in part] for part in self._stages]
        if not _has_room(sum(map(len, parts))):
            parts = [[part] for part in self._stages]
        ranks = [[own for own in stages if own["stage"] == n] or [{}] for n in range(len(parts))]
        pairs = list(zip(parts, ranks, strict=True))
        every = _has_room(sum(max(len(part), len(own)) for part, own in pairs))
        for number, (part, own) in enumerate(pairs):
            shown = own if every else own[: len(part)]
            for modules, facts in zip_longest(part, shown):
                yield number, modules or range(0), facts

    def _of_stage(self, number: int, facts: Facts) -> list[str]:
        """A stage's cells, "-" where it has not reported yet or has no GPU that says so."""
        if not facts:
            return [f"{number}", *["-"] * (len(_STAGE) + 1)]
        rate, _, _ = self._task.rate_text(facts["samples_per_second"]).partition(" ")
        up, down = facts["waiting_up"], facts["waiting_down"]
        shares = (f"{100 * share:.0f}%" for share in (max(0.0, 1 - up - down), up, down))
        memory = f"{facts['memory_bytes'] / 2**20:.0f}"
        gpu = _cell(facts, "gpu_utilization_percent", "{}%".format)
        replica = f".{facts['replica']}" if "replica" in facts else ""
        return [f"{number}{replica}", rate, *shares, memory, gpu]

    def _bar(self, facts: Facts) -> Table:
        step, course = facts["step"], self._course
        grid = Table.grid(padding=(0, 2, 0, 0))
        grid.add_row(
            f"step {step}/{course.num_steps}",
            ProgressBar(total=course.num_steps, completed=step, width=_BAR),
            course.epoch(step),
            self._task.rate_text(facts["samples_per_second"]),
            course.left(step),
        )
        return grid


def _cell(row: Facts, name: str, text: Callable[[float], str]) -> str:
    return text(row[name]) if name in row else "-"


def _space() -> int:
    return 2 if width() >= _WIDE else 1


def _has_room(rows: int) -> bool:
    """Whether a table of so many rows can be shown."""
    return rows + _FRAME <= height()


def _span(part: range) -> str:
    first, last = part.start + 1, part.stop
    return f"{first}" if first == last else f"{first}-{last}"


def display(blueprint: Blueprint, stages: Sequence[range], rank: int, start: int) -> Display:
    """Returns what shows a run on this process's stdout; the first rank shows all stages.

    Args:
        blueprint: the run.
        stages: the modules of each stage.
        rank: of this process.
        start: the steps done before.
    """
    startup.over()
    if rank:
        return Silent()
    if blueprint.config.run.quiet:
        return Quiet()
    course = Course(blueprint.run_plan, start)
    if draws():
        return LiveView(course, stages, blueprint.task)
    return Progress(course, len(blueprint.modules), blueprint.task)
