"""The timeline as a picture."""

import shutil

from pipeline_local.report.picture import pictures
from pipeline_local.report.run import read
from tests.report.folders import make_run


def test_a_row_for_each_module(tmp_path):
    (run,) = read([make_run(tmp_path / "first")])
    (chart,) = pictures(run, alone=True)
    assert chart.title == "Timeline"
    assert chart.note.startswith("Steps 3 to 8:")
    assert chart.layout["yaxis"]["categoryarray"] == ["stage 0, module 1", "stage 1, module 2"]
    names = ["act 1, forward", "act 2, signal", "act 3, learn", "evaluation"]
    assert [entry.text for entry in chart.legend] == names
    forward = chart.traces[0]
    assert forward["y"][0] == "stage 0, module 1"
    assert (forward["base"][0], forward["x"][0], forward["customdata"][0]) == (0, 3, 3)
    assert len(chart.figure()["data"]) == 4


def test_no_trace(tmp_path):
    path = make_run(tmp_path / "first")
    shutil.rmtree(path / "trace")
    assert [*pictures(read([path])[0], alone=False)] == []
