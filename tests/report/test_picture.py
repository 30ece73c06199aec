"""The timeline as a picture."""

import shutil

from pipeline_local.record.folder import RunFolder
from pipeline_local.record.stage_trace import StageTrace
from pipeline_local.record.trace import Span
from pipeline_local.report import page
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


def test_replicas_are_named_as_such_in_the_order_of_ranks(tmp_path):
    path = make_run(tmp_path / "first")
    shutil.rmtree(path / "trace")
    folder, places = RunFolder(path), ("stage 0, replica 0", "stage 0, replica 1", "stage 1")
    for rank, place in enumerate(places):
        spans = [Span("learn", rank // 2, 0, 0, "", 0, 10**6)]
        StageTrace(rank, 3, "here", "2026", spans, place=place).write(folder.trace(rank))
    (chart,) = pictures(read([path])[0], alone=True)
    rows = [f"{place}, module {rank // 2 + 1}" for rank, place in enumerate(places)]
    assert chart.layout["yaxis"]["categoryarray"] == rows
    assert chart.traces[0]["y"] == rows


def test_no_trace(tmp_path):
    path = make_run(tmp_path / "first")
    shutil.rmtree(path / "trace")
    assert [*pictures(read([path])[0], alone=False)] == []


def test_a_run_that_failed_in_its_first_step(tmp_path):
    path = make_run(tmp_path / "first")
    shutil.rmtree(path / "trace")
    folder = RunFolder(path)
    spans = [Span(act, 0, 0, 0, "", 0, 10**6) for act in ("recv", "forward")]
    StageTrace(0, 2, "here", "2026", spans).write(folder.trace(0))
    (chart,) = pictures(read([path])[0], alone=True)
    assert chart.note.startswith("Steps 1 to 1:")
    assert [entry.text for entry in chart.legend] == ["act 1, forward", "wait for a message"]
    assert page.write([path]).is_file()
