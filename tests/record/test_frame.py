"""All stages' measurements in one data frame."""

import json

import pytest

from pipeline_local import load_metrics
from pipeline_local.errors import UserError


def line(event, step, modules, stage=0, **more):
    facts = {"event": event, "stage": stage, "epoch": step / 4, "time": 1.5, "step": step}
    return json.dumps({**facts, "modules": modules, **more}) + "\n"


@pytest.fixture
def run(tmp_path):
    (tmp_path / "metrics").mkdir()
    first, second = (tmp_path / "metrics" / f"stage-{k}.jsonl" for k in range(2))
    first.write_text(
        line(
            "train",
            2,
            {"1": {"loss": 2.0}},
            lr=0.1,
            seconds={"forward": 0.5},
            gpu_throttling={"power_cap": 0.25},
        )
        + line("train", 4, {"1": {"loss": 1.5}}, lr=0.2)
        + line("train", 4, {"1": {"loss": 1.25}}, lr=0.2)
        + '{"event": "train", "st'
    )
    second.write_text(
        line("train", 2, {"2": {"loss": 3.0, "cosine": -0.5}, "3": {"loss": 4.0}}, stage=1)
        + line("test", 4, {"2": {"accuracy": 0.75}, "3": {"accuracy": 0.5}}, stage=1)
    )
    return tmp_path


def test_a_row_for_each_module_step_and_event(run):
    frame = load_metrics(run)
    assert list(frame.columns[:6]) == ["event", "step", "epoch", "time", "stage", "module"]
    assert [tuple(row) for row in frame[["event", "step", "module"]].to_numpy()] == [
        ("train", 2, 1),
        ("train", 2, 2),
        ("train", 2, 3),
        ("test", 4, 2),
        ("test", 4, 3),
        ("train", 4, 1),
    ]
    assert frame.loss.tolist()[:3] == [2.0, 3.0, 4.0]
    assert frame.loss.tolist()[-1] == 1.25, "the newer one"
    assert frame.cosine.dropna().tolist() == [-0.5]
    assert frame.accuracy.dropna().tolist() == [0.75, 0.5]
    assert frame.seconds_forward.dropna().tolist() == [0.5]
    assert frame.gpu_throttling_power_cap.dropna().tolist() == [0.25]
    assert "gpu_throttling" not in frame
    assert frame.stage.tolist() == [0, 1, 1, 1, 1, 0]


def test_the_newer_row_is_that_of_another_stage(run):
    """A run that has gone back to an earlier checkpoint, on one stage."""
    with (run / "metrics" / "stage-0.jsonl").open("a") as file:
        file.write("\n" + line("train", 2, {"2": {"loss": 2.5}}, time=2.0))
    frame = load_metrics(run)
    assert frame[(frame.step == 2) & (frame.module == 2)].loss.tolist() == [2.5]


def test_no_run(tmp_path):
    with pytest.raises(UserError, match=r"has no metrics; give the run\.dir of a run"):
        load_metrics(tmp_path)


def test_without_pandas(run, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "pandas", None)
    with pytest.raises(UserError, match=r"needs pandas.*pip install .pipeline-local\[frame\]"):
        load_metrics(run)


def test_a_run_that_has_not_logged_yet(run):
    """Its stages have opened their files."""
    for file in (run / "metrics").iterdir():
        file.write_text("")
    with pytest.raises(UserError, match=r"has no metrics; give the run\.dir of a run"):
        load_metrics(run)


def test_a_folder_named_by_text(run, monkeypatch):
    monkeypatch.setenv("RUNS", str(run.parent))
    assert load_metrics(f"$RUNS/{run.name}").equals(load_metrics(run))
