"""The timeline of a run's last steps as a picture."""

from collections.abc import Iterator

from pipeline_local.report.chart import GREY, PALETTE, Chart, LegendEntry
from pipeline_local.report.run import RecordedRun
from pipeline_local.report.spans import STEPS, ActSpan, last_acts

ACTS = {
    "forward": ("act 1, forward", PALETTE[0]),
    "signal": ("act 2, signal", PALETTE[1]),
    "learn": ("act 3, learn", PALETTE[2]),
    "update": ("update", PALETTE[5]),
    "send": ("send", PALETTE[4]),
    "recv": ("wait for a message", "#bbbbbb"),
    "evaluate": ("evaluation", PALETTE[3]),
}
"""What the acts of a trace mean, and their colours; any others are grey."""


def pictures(run: RecordedRun, alone: bool) -> Iterator[Chart]:
    """Yields the timeline of a run; none without a trace.

    Args:
        run: the run.
        alone: whether it is the only one of the report.
    """
    acts = last_acts(run.folder)
    if not acts:
        return
    rows = sorted({(act.rank, act.module, _row_name(act)) for act in acts})
    names = [*ACTS, *sorted({act.name for act in acts} - ACTS.keys())]
    shown = [name for name in names if any(act.name == name for act in acts)]
    learned = [act.step for act in acts if act.name == "learn"]
    last = max(learned or (act.step for act in acts)) + 1  # a first step may have failed
    yield Chart(
        "Timeline" if alone else f"Timeline of {run.name}",
        f"Steps {max(1, last - STEPS + 1)} to {last}: what each module did when.",
        [_row(name, [act for act in acts if act.name == name]) for name in shown],
        {
            "barmode": "overlay",
            "bargap": 0.15,
            "xaxis": {"title": {"text": "ms"}},
            "yaxis": {
                "autorange": "reversed",
                "categoryorder": "array",
                "categoryarray": [name for _, _, name in rows],
            },
        },
        [LegendEntry(*_meaning(name)[:1], f"act:{name}", _meaning(name)[1]) for name in shown],
        height=max(180, 80 + 30 * len(rows)),
        wide=True,
    )


def _meaning(name: str) -> tuple[str, str]:
    return ACTS.get(name, (name, GREY))


def _row_name(act: ActSpan) -> str:
    return f"{act.place}, module {act.module}"


def _row(name: str, acts: list[ActSpan]) -> dict[str, object]:
    text, colour = _meaning(name)
    return {
        "type": "bar",
        "orientation": "h",
        "name": text,
        "y": [_row_name(act) for act in acts],
        "base": [round(act.begin, 3) for act in acts],
        "x": [round(act.length, 3) for act in acts],
        "customdata": [act.step + 1 for act in acts],
        "hovertemplate": f"step %{{customdata}}, {text}: %{{x:.2f}} ms<extra></extra>",
        "marker": {"color": colour, "line": {"width": 0}},
        "meta": {"keys": [f"act:{name}"]},
    }
