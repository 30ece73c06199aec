"""What the page says in words and numbers."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from pipeline_local.errors import counted
from pipeline_local.report.chart import DASHES, colour_of
from pipeline_local.report.compare import ComparisonRow, number
from pipeline_local.report.prediction import PlannedRun
from pipeline_local.report.run import NONE, RecordedRun


class Tile(NamedTuple):
    """A headline number: what it is, its value, and a few words on it."""

    name: str
    value: str
    about: str = ""


@dataclass(frozen=True)
class Card:
    """A run in a few lines.

    Attributes:
        name: of the run.
        about: what was trained where and when.
        state: how far it is.
        finished: whether it is complete.
        colour, dash: of its bars and curves.
        tiles: its headline numbers.
    """

    name: str
    about: str
    state: str
    finished: bool
    colour: str
    dash: str
    tiles: Sequence[Tile]


class Head(NamedTuple):
    """A row of the table of results."""

    module: int
    about: str
    cells: Sequence[str]


@dataclass(frozen=True)
class Heads:
    """The table of results of one run."""

    name: str
    columns: Sequence[str]
    rows: Sequence[Head]


def card(run: RecordedRun, index: int, count: int, prediction: PlannedRun | str) -> Card:
    """Returns the headline of one of so many runs."""
    steps = prediction.steps if isinstance(prediction, PlannedRun) else None
    finished = run.results is not None
    of = f" of {steps}" if steps and not finished else ""
    done = counted(run.step, "step") if not of else f"step {run.step}{of}"
    return Card(
        name=run.name,
        about=_about(run),
        state=f"finished, {done}" if finished else f"not finished: {done}",
        finished=finished,
        colour=colour_of(index, count),
        dash=DASHES[index],
        tiles=list(_tiles(run)),
    )


def heads(run: RecordedRun, prediction: PlannedRun | str) -> Heads | None:
    """Returns the scores of all heads; None before the first evaluation."""
    if not run.heads:
        return None
    metric = run.metric
    names = [metric.name, f"ensemble_{metric.name}", *metric.shown, "loss"]
    names = [name for name in names if name in run.heads[-1]]
    about = [""] * len(run.heads)
    if isinstance(prediction, PlannedRun):
        about = [f"stage {row.stage}: {row.blocks}; {row.head}" for row in prediction.modules]
    rows = [
        Head(int(row["module"]), what, [_score(run, name, row.get(name)) for name in names])
        for row, what in zip(run.heads, about, strict=True)
    ]
    return Heads(run.name, [_column(name) for name in names], rows)


def notes(runs: Sequence[RecordedRun], predictions: Sequence[PlannedRun | str]) -> Iterator[str]:
    """Yields what the reader must know before he compares or believes."""
    if len({run.metric.name for run in runs}) > 1:
        yield "These runs are of different tasks: their losses cannot be compared."
    for run, prediction in zip(runs, predictions, strict=True):
        if run.frame is None:
            yield f"{run.name} has not logged a step yet."
        if isinstance(prediction, str):
            yield f"There is no plan of {run.name} to compare with: {prediction}"
        for start in run.starts[1:]:
            versions = f"torch {start.get('torch', NONE)}, on {start.get('host', NONE)}"
            yield f"{run.name} was continued after step {start.get('step', NONE)} ({versions})."


def by_section(rows: Sequence[ComparisonRow]) -> dict[str, list[ComparisonRow]]:
    """Returns the keys of a configuration by their sections, in order."""
    sections: dict[str, list[ComparisonRow]] = {}
    for row in rows:
        name, dot, _ = row.name.partition(".")
        sections.setdefault(name if dot else "other", []).append(row)
    return sections


def _about(run: RecordedRun) -> str:
    model, data = (run.settings.get(f"{part}.name", NONE) for part in ("model", "data"))
    modules, stages = counted(run.num_modules, "module"), counted(run.num_stages, "stage")
    begun = ""
    if run.starts:
        begun = f" · started {str(run.starts[0].get('started', NONE))[:16].replace('T', ' ')}"
    return f"{model} on {data} · {modules} on {stages}{begun}"


def _tiles(run: RecordedRun) -> Iterator[Tile]:
    metric, facts = run.metric, run.results or {}
    if run.heads:
        last = run.heads[-1]
        name = metric.name.replace("_", " ")
        yield Tile(name, metric.text(last.get(metric.name)), "last head")
        together = last.get(f"ensemble_{metric.name}")
        if together is not None and len(run.heads) > 1:
            yield Tile(name, metric.text(together), "heads together")
        if "loss" in last:
            yield Tile("test loss", number(last["loss"]), "last head")
    if (rate := facts.get("tokens_per_second")) is not None:
        yield Tile("speed", f"{rate:.0f}", "tokens/s")
    elif run.samples_per_second is not None:
        yield Tile("speed", f"{run.samples_per_second:.0f}", "samples/s")
    if "seconds" in facts:
        yield Tile("training time", _duration(facts["seconds"]))
    if "efficiency" in facts:
        yield Tile("efficiency", f"{facts['efficiency']:.0%}", "of the pipeline")
    if run.memory:
        yield Tile(run.memory_name, _size(max(run.memory)), "fullest stage")


def _size(count: float) -> str:
    return f"{count / 2**20:.0f} MiB" if count < 2**33 else f"{count / 2**30:.1f} GiB"


def _duration(seconds: float) -> str:
    if seconds < 100:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s"


def _column(name: str) -> str:
    return "together" if name.startswith("ensemble_") else name.replace("_", " ")


def _score(run: RecordedRun, name: str, value: float | None) -> str:
    if value is None:
        return NONE
    if name.removeprefix("ensemble_") == run.metric.name:
        return run.metric.text(value)
    return f"{value:.2%}" if "accuracy" in name else number(value)
