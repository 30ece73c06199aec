"""What changes while runs train: a curve for each module, and the staircase of their heads."""

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from pipeline_local.report.chart import DASHES, Chart, LegendEntry, PlotlyTrace, colour_of
from pipeline_local.report.run import Metric, RecordedRun

if TYPE_CHECKING:
    import pandas as pd

BETWEEN = ("discord", "cosine")
"""Columns of a module that are about the boundary to its upstream neighbour."""
MOST_POINTS = 1500
"""Points of a curve; of a longer one every n-th is drawn, and the last."""


def curves(runs: Sequence[RecordedRun]) -> Iterator[Chart]:
    """Yields the charts over time, of whatever the runs have measured."""
    layout: dict[str, Any] = {"xaxis": {"title": {"text": "step"}}}
    loss = {**layout, "yaxis": {"title": {"text": "loss"}}}
    every = dict(enumerate(runs))
    yield from _chart("Training loss", "The local loss of each module.", every, "loss", loss)
    for metric in _metrics(runs):
        scored = {**layout, "yaxis": _axis(metric)}
        title, note = f"{_title(metric)} on the test set", "Each module's own head."
        yield from _chart(title, note, _of_metric(runs, metric), metric.name, scored, "test")
    note = "Between the gradient at a module's input and its upstream neighbour's signal:"
    powers = {"title": {"text": "discord"}, "type": "log", "exponentformat": "power"}
    apart = {**layout, "yaxis": powers}
    yield from _chart("Discord", f"{note} 0 where they agree.", every, "discord", apart)
    angle = {**layout, "yaxis": {"title": {"text": "cosine"}, "zeroline": True}}
    yield from _chart("Cosine", f"{note} 1 where they point the same way.", every, "cosine", angle)


def staircases(runs: Sequence[RecordedRun]) -> Iterator[Chart]:
    """Yields a chart per metric: what each head reaches alone, and with all heads up to it."""
    for metric in _metrics(runs):
        own = _of_metric(runs, metric)
        traces = [trace for n, run in own.items() for trace in _stairs(run, n, len(runs))]
        if not traces:
            continue
        colours = [
            LegendEntry(run.name, f"run:{n}", colour_of(n, len(runs)), "solid")
            for n, run in own.items()
        ]
        apart = 1 + max(run.num_modules for run in own.values()) // 12
        heads = {"title": {"text": "head"}, "tick0": 1, "dtick": apart}
        yield Chart(
            f"{_title(metric)}, head by head",
            "The newest evaluation: each head alone, and together with all heads before it.",
            traces,
            {"xaxis": heads, "yaxis": _axis(metric)},
            [
                *(colours if len(runs) > 1 else ()),
                LegendEntry("alone", "alone", dash="solid"),
                LegendEntry("together", "all", dash="dot"),
            ],
        )


def _metrics(runs: Sequence[RecordedRun]) -> list[Metric]:
    """The metrics of the runs, each once."""
    return [*{run.metric.name: run.metric for run in runs}.values()]


def _of_metric(runs: Sequence[RecordedRun], metric: Metric) -> dict[int, RecordedRun]:
    """The runs with this metric, by their place among all."""
    return {n: run for n, run in enumerate(runs) if run.metric.name == metric.name}


def _title(metric: Metric) -> str:
    return metric.name.replace("_", " ").capitalize()


def _axis(metric: Metric) -> dict[str, Any]:
    title = {"title": {"text": metric.name.replace("_", " ")}}
    if metric.percent:
        return {**title, "tickformat": ".4~p"}
    return {**title, "type": "log"} if metric.name == "perplexity" else title


def _chart(
    title: str,
    note: str,
    runs: Mapping[int, RecordedRun],
    column: str,
    layout: dict[str, Any],
    event: str = "train",
) -> Iterator[Chart]:
    """The chart of one column of the measurements; none where no run has it."""
    most = max(run.num_modules for run in runs.values())
    traces = [
        {**trace, "name": f"{trace['name']}, {run.name}" if len(runs) > 1 else trace["name"]}
        for n, run in runs.items()
        for trace in _of_run(run, n, column, event, most)
    ]
    if not traces:
        return
    between = column in BETWEEN
    found = sorted({trace["meta"]["module"] for trace in traces})
    modules = [
        LegendEntry(_name(k, between), f"module:{k}", colour_of(k - 1, most), "solid")
        for k in found
    ]
    drawn = {key for trace in traces for key in trace["meta"]["keys"]}
    dashes = [
        LegendEntry(run.name, f"run:{n}", dash=DASHES[n])
        for n, run in runs.items()
        if f"run:{n}" in drawn
    ]
    yield Chart(title, note, traces, layout, [*modules, *(dashes if len(runs) > 1 else ())])


def _name(module: int, between: bool) -> str:
    return f"modules {module - 1} | {module}" if between else f"module {module}"


def _of_run(
    run: RecordedRun, number: int, column: str, event: str, most: int
) -> Iterator[PlotlyTrace]:
    if run.frame is None or column not in run.frame:
        return
    rows = run.frame[(run.frame.event == event) & run.frame[column].notna()]
    for module, own in rows.groupby("module"):
        few = _thinned(own)
        times = {
            "step": few.step.tolist(),
            "epoch": few.epoch.tolist(),
            "minute": ((few.time - run.frame.time.min()) / 60).round(3).tolist(),
        }
        yield {
            "type": "scatter",
            "mode": "lines" if len(few) > 30 else "lines+markers",
            "name": _name(int(module), column in BETWEEN),
            "x": times["step"],
            "y": few[column].tolist(),
            "line": {"color": colour_of(int(module) - 1, most), "dash": DASHES[number], "width": 2},
            "marker": {"size": 5 if len(few) > 1 else 9},
            "meta": {
                "keys": [f"module:{module}", f"run:{number}"],
                "x": times,
                "module": int(module),
            },
        }


def _thinned(rows: "pd.DataFrame") -> "pd.DataFrame":
    step = -(-len(rows) // MOST_POINTS)
    return rows.iloc[(len(rows) - 1) % step :: step]


def _stairs(run: RecordedRun, number: int, count: int) -> Iterator[PlotlyTrace]:
    together = f"ensemble_{run.metric.name}"
    for column, key, dash in ((run.metric.name, "alone", "solid"), (together, "all", "dot")):
        rows = [row for row in run.heads if column in row]
        if rows:
            yield {
                "type": "scatter",
                "mode": "lines+markers",
                "name": f"{run.name}, {'together' if key == 'all' else 'alone'}",
                "x": [row["module"] for row in rows],
                "y": [row[column] for row in rows],
                "line": {
                    "shape": "hvh",
                    "dash": dash,
                    "width": 2,
                    "color": colour_of(number, count),
                },
                "marker": {"size": 7},
                "meta": {"keys": [f"run:{number}", key]},
            }
