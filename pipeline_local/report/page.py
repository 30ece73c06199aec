"""A report: one page of HTML that needs nothing but a browser."""

import json
from collections.abc import Sequence
from datetime import datetime
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from pipeline_local import __version__
from pipeline_local.errors import UserError
from pipeline_local.report import compare, tables
from pipeline_local.report.chart import DASHES, Chart
from pipeline_local.report.curves import curves, staircases
from pipeline_local.report.picture import pictures
from pipeline_local.report.prediction import PlannedRun, predict
from pipeline_local.report.run import RecordedRun, read
from pipeline_local.report.stages import memory_chart, time_chart
from pipeline_local.user_input import new_file

OPTION = "--output"


def write(paths: Sequence[Path], output: Path | None = None) -> Path:
    """Writes the report of one run, or of several over each other; returns its path.

    Args:
        paths: the run folders; the runs may still go on.
        output: the new file; None: report.html in the first of the folders.

    Raises:
        UserError: a folder is no run, there are too many, the file exists or cannot be written, or
            a library is missing.
    """
    _check_libraries()
    if len(paths) > len(DASHES):
        raise UserError(f"at most {len(DASHES)} runs can be told apart, got {len(paths)}")
    runs = read(paths)
    target = paths[0] / "report.html" if output is None else output
    new_file.check(OPTION, target)
    new_file.write(OPTION, target, html(runs, [predict(run) for run in runs]))
    return target


def html(runs: Sequence[RecordedRun], predictions: Sequence[PlannedRun | str]) -> str:
    """Returns the page.

    Args:
        runs: what is shown.
        predictions: for each run what the plan predicts, or why it predicts nothing.
    """
    import jinja2
    from plotly.offline import get_plotlyjs

    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("pipeline_local", "report/assets"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    pairs = list(zip(runs, predictions, strict=True))
    found = charts(runs, predictions)
    settings = compare.settings(runs)
    return environment.get_template("page.html").render(
        title=" · ".join(run.name for run in runs),
        version=__version__,
        written=datetime.now().astimezone().strftime("%Y-%m-%d %H:%M"),
        cards=[tables.card(run, n, len(runs), plan) for n, (run, plan) in enumerate(pairs)],
        notes=list(tables.notes(runs, predictions)),
        charts=found,
        figures=_as_script([chart.figure() for chart in found]),
        heads=[table for run, plan in pairs if (table := tables.heads(run, plan))],
        runs=[run.name for run in runs],
        differing=[row for row in settings if row.differs],
        sections=tables.by_section(settings),
        environment=compare.environment(runs),
        plotly=get_plotlyjs(),
    )


def charts(runs: Sequence[RecordedRun], predictions: Sequence[PlannedRun | str]) -> list[Chart]:
    """Returns the charts of a report, in order."""
    planned = list(zip(runs, predictions, strict=True))
    return [
        *curves(runs),
        *staircases(runs),
        *time_chart(planned),
        *memory_chart(planned),
        *(chart for run in runs for chart in pictures(run, alone=len(runs) == 1)),
    ]


def _as_script(figures: Sequence[dict[str, Any]]) -> str:
    """JSON that can stand in a script: nothing in it ends the element."""
    text = json.dumps(figures, separators=(",", ":"), allow_nan=False)
    return text.replace("<", "\\u003c")


def _check_libraries() -> None:
    for name in ("jinja2", "pandas", "plotly"):
        if find_spec(name) is None:
            raise UserError(
                f'a report needs {name}, which is missing; pip install "pipeline-local[report]"'
            )
