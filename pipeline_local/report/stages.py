"""Each stage's time and memory beside what the plan says, and beside other methods."""

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

from pipeline_local.report.chart import Chart, LegendEntry, PlotlyTrace, colour_of
from pipeline_local.report.prediction import PlannedRun
from pipeline_local.report.run import RecordedRun

WAITS = (("waiting_up", "waits for upstream", 0.5), ("waiting_down", "waits for downstream", 0.25))
"""Columns, what they mean, and the opacity of their bars."""

Planned = Sequence[tuple[RecordedRun, PlannedRun | str]]
"""Each run with what the plan predicts, or why it predicts nothing."""


class StageTime(NamedTuple):
    """The milliseconds of an average step that a stage computes and waits."""

    stage: int
    computes: float
    waiting_up: float
    waiting_down: float


def times(run: RecordedRun) -> list[StageTime]:
    """Returns how each stage has spent an average logged step; empty where nothing was logged."""
    needed = {"samples_per_second", "waiting_up", "waiting_down"}
    batch = run.settings.get("data.batch_size")
    if run.logged is None or not batch or not needed <= {*run.logged.columns}:
        return []
    found = []
    for stage, rows in run.logged.groupby("stage"):
        once = rows.drop_duplicates("step").dropna(subset=[*needed])
        done = once.step.diff().fillna(once.step - run.begun)  # steps since the row before
        spent = done * float(batch) / once.samples_per_second
        steps, seconds = float(done.sum()), float(spent.sum())
        up, down = (float((once[name] * spent).sum()) for name in ("waiting_up", "waiting_down"))
        if steps:
            parts = (1000 * part / steps for part in (max(0.0, seconds - up - down), up, down))
            found.append(StageTime(int(stage), *parts))
    return found


def time_chart(planned: Planned) -> Iterator[Chart]:
    """Yields the chart of the stages' times; none where nothing was logged."""
    count = len(planned)
    traces = [
        trace
        for number, (run, prediction) in enumerate(planned)
        for trace in _times(run, number, count, prediction)
    ]
    if not traces:
        return
    waits = [LegendEntry(text, name, fade=fade) for name, text, fade in WAITS if _any(traces, name)]
    plan = [LegendEntry("plan", "plan", hatched=True)] if _any(traces, "plan") else []
    yield _bars(
        "Time per stage",
        "Milliseconds of an average step. " + " ".join(_explained(planned)),
        traces,
        [*_runs(planned), LegendEntry("computes", "computes"), *waits, *plan],
        "ms per step",
    )


def memory_chart(planned: Planned) -> Iterator[Chart]:
    """Yields the chart of the stages' memory beside other methods'; none where nothing is known."""
    count = len(planned)
    traces = [
        trace
        for number, (run, prediction) in enumerate(planned)
        for trace in _memory(run, number, count, prediction)
    ]
    if not traces:
        return
    kinds = (("measured", False), ("plan", True))
    entries = [
        LegendEntry(key, key, hatched=hatched) for key, hatched in kinds if _any(traces, key)
    ]
    yield _bars(
        "Memory per stage, beside backpropagation",
        "The peak of each stage, and what other methods would need on their fullest device. "
        + " ".join(_resident(planned)),
        traces,
        [*_runs(planned), *entries],
        "MiB",
    )


def _times(
    run: RecordedRun, number: int, count: int, prediction: PlannedRun | str
) -> Iterator[PlotlyTrace]:
    measured = times(run)
    stages = [_stage(one.stage) for one in measured]
    computes = [one.computes for one in measured]
    if not measured:
        return
    yield _bar(run, (number, count), "computes", stages, computes)
    base = computes
    for name, text, fade in WAITS:
        lengths = [getattr(one, name) for one in measured]
        if any(lengths):
            yield {
                **_bar(run, (number, count), name, stages, lengths, text),
                "base": base,
                "opacity": fade,
            }
        base = [begin + length for begin, length in zip(base, lengths, strict=True)]
    if isinstance(prediction, PlannedRun) and len(prediction.costs) == len(measured):
        if prediction.unit == "seconds":
            costs = [1000 * cost for cost in prediction.costs]
        else:
            scale = sum(computes) / (sum(prediction.costs) or 1)
            costs = [scale * cost for cost in prediction.costs]
        yield _bar(run, (number, count), "plan", stages, costs)


def _memory(
    run: RecordedRun, number: int, count: int, prediction: PlannedRun | str
) -> Iterator[PlotlyTrace]:
    if run.on_accelerator and run.memory:
        names = [_stage(stage) for stage in range(len(run.memory))]
        sizes = [peak / 2**20 for peak in run.memory]
        yield _bar(run, (number, count), "measured", names, sizes)
    if isinstance(prediction, PlannedRun):
        peaks = {_stage(stage): peak for stage, peak in enumerate(prediction.peaks)}
        peaks |= {name.replace(", ", ",<br>", 1): peak for name, peak in prediction.others.items()}
        sizes = [peak / 2**20 for peak in peaks.values()]
        yield _bar(run, (number, count), "plan", [*peaks], sizes)


def _bar(
    run: RecordedRun,
    place: tuple[int, int],
    key: str,
    names: Sequence[str],
    lengths: Sequence[float],
    text: str | None = None,
) -> PlotlyTrace:
    """A row of bars; those of a run with the same group stand in one line."""
    number, count = place
    plan = key == "plan"
    colour = colour_of(number, count)
    pattern = {"shape": "/", "fgcolor": colour, "fillmode": "replace", "size": 6, "solidity": 0.4}
    edge = {"color": colour, "width": 1}
    return {
        "type": "bar",
        "orientation": "h",
        "name": f"{text or key}, {run.name}" if count > 1 else text or key,
        "y": list(names),
        "x": [round(length, 4) for length in lengths],
        "offsetgroup": f"{number}{'plan' if plan else ''}",
        "marker": {"color": colour, **({"pattern": pattern, "line": edge} if plan else {})},
        "meta": {"keys": [f"run:{number}", key]},
    }


def _bars(
    title: str, note: str, traces: Sequence[PlotlyTrace], legend: Sequence[LegendEntry], unit: str
) -> Chart:
    found = dict.fromkeys(name for trace in traces for name in trace["y"])
    names = sorted(found, key=_rank)
    groups = {trace["offsetgroup"] for trace in traces}
    layout: dict[str, Any] = {
        "barmode": "group",
        "bargap": 0.25,
        "xaxis": {"title": {"text": unit}, "rangemode": "tozero"},
        "yaxis": {"autorange": "reversed", "categoryorder": "array", "categoryarray": names},
    }
    height = 90 + len(names) * max(30, 15 * len(groups))
    return Chart(title, note.strip(), traces, layout, legend, max(220, height))


def _runs(planned: Planned) -> list[LegendEntry]:
    count = len(planned)
    if count == 1:
        return []
    return [
        LegendEntry(run.name, f"run:{n}", colour_of(n, count)) for n, (run, _) in enumerate(planned)
    ]


def _any(traces: Sequence[PlotlyTrace], key: str) -> bool:
    return any(key in trace["meta"]["keys"] for trace in traces)


def _stage(number: int) -> str:
    return f"stage {number}"


def _rank(name: str) -> int:
    """Stages come first, in order."""
    word, _, number = name.partition(" ")
    return int(number) if word == "stage" else 2**31


def _explained(planned: Planned) -> Iterator[str]:
    known = [(run, each.unit) for run, each in planned if isinstance(each, PlannedRun)]
    for unit, how in (("seconds", "a profile"), ("FLOPs", "FLOPs, scaled to the same total")):
        names = [run.name for run, its in known if its == unit]
        whose = f" of {' and '.join(names)}" if len(names) < len(known) else ""
        if names:
            yield f"The plan{whose} is by {how}."


def _resident(planned: Planned) -> Iterator[str]:
    for run, _ in planned:
        if run.memory and not run.on_accelerator:
            sizes = ", ".join(f"{peak / 2**20:.0f}" for peak in run.memory)
            whose = f" of {run.name}" if len(planned) > 1 else ""
            yield (
                f"The processes{whose} took {sizes} MiB, Python and torch included, which the plan"
                f" does not count."
            )
