"""Time and memory of each stage, beside the plan and backpropagation."""

from dataclasses import replace

import pytest

from pipeline_local.record.summary import ModuleRow
from pipeline_local.report.prediction import PlannedRun
from pipeline_local.report.run import read
from pipeline_local.report.stages import memory_chart, time_chart, times
from tests.report.folders import cut_off, make_run, resume

PLAN = PlannedRun(
    steps=8,
    modules=(ModuleRow(0, "layer0", "linear"), ModuleRow(1, "layer1", "classifier")),
    costs=(3e6, 1e6),
    unit="FLOPs",
    peaks=(3 * 2**20, 2**20),
    others={"BP, 1 device, m=1": 8 * 2**20},
)


@pytest.fixture
def run(tmp_path):
    return read([make_run(tmp_path / "first")])[0]


def bars(chart):
    return {trace["meta"]["keys"][1]: trace for trace in chart.traces}


def test_times_of_an_average_step(run):
    """32 samples at a millisecond each; the second stage waits for a quarter of it."""
    first, second = times(run)
    assert first == (0, pytest.approx(32), 0, 0)
    assert second == (1, pytest.approx(24), pytest.approx(8), 0)


def test_times_since_the_newest_start(tmp_path):
    """One stage that has taken over from two, in four steps at 2 milliseconds a sample."""
    (run,) = read([resume(make_run(tmp_path / "second"), step=4, stages=1, steps=8)])
    assert times(run) == [(0, pytest.approx(64), 0, 0)]
    lines = (run.folder.metrics(0)).read_text().splitlines(keepends=True)
    kept = "".join(line for line in lines if '"time": 6' in line or '"step": 8' in line)
    run.folder.metrics(0).write_text(kept)  # it has logged its fourth step only
    assert times(read([run.folder.path])[0]) == [(0, pytest.approx(64), 0, 0)]


def test_the_plan_beside_the_times(run):
    (chart,) = time_chart([(run, PLAN)])
    found = bars(chart)
    assert found["computes"]["x"] == [32, 24]
    assert (found["waiting_up"]["x"], found["waiting_up"]["base"]) == ([0, 8], [32, 24])
    assert "waiting_down" not in found
    assert found["plan"]["x"] == [42, 14], "3 to 1, of the same total"
    assert "by FLOPs, scaled to the same total" in chart.note
    (chart,) = time_chart([(run, replace(PLAN, costs=(0.03, 0.02), unit="seconds"))])
    assert bars(chart)["plan"]["x"] == [30, 20]
    assert "by a profile" in chart.note
    (chart,) = time_chart([(run, "no plan")])
    assert "plan" not in bars(chart)


def test_memory_beside_backpropagation(run):
    (chart,) = memory_chart([(run, PLAN)])
    (plan,) = chart.traces
    assert plan["x"] == [3, 1, 8]
    assert plan["y"] == ["stage 0", "stage 1", "BP,<br>1 device, m=1"]
    assert "took 1024, 512 MiB, Python and torch included" in chart.note


def test_a_gpus_memory_is_what_the_plan_counts(tmp_path):
    (run,) = read([make_run(tmp_path / "first", device="cuda")])
    (chart,) = memory_chart([(run, PLAN)])
    assert bars(chart)["measured"]["x"] == [1024, 512]
    assert "included" not in chart.note


def test_runs_on_other_numbers_of_stages(tmp_path, run):
    other = replace(read([make_run(tmp_path / "second")])[0], name="second")
    wide = replace(PLAN, peaks=(1, 2, 3), others={"1F1B, p=3, m=1": 5})
    (chart,) = memory_chart([(run, PLAN), (other, wide)])
    order = chart.layout["yaxis"]["categoryarray"]
    assert order[:3] == ["stage 0", "stage 1", "stage 2"]
    assert len(order) == 5
    assert [entry.text for entry in chart.legend] == ["first", "second", "plan"]
    assert chart.figure()["data"]


def test_nothing_is_known(tmp_path):
    path = cut_off(make_run(tmp_path / "first"))
    for file in (path / "metrics").iterdir():
        file.write_text("")
    (run,) = read([path])
    assert [*time_chart([(run, PLAN)]), *memory_chart([(run, "no plan")])] == []
