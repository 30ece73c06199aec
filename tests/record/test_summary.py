"""The summary: one line of results per module, whatever stage it ran on."""

import json

import pytest

from pipeline_local.errors import UserError
from pipeline_local.learning.tasks import Classification
from pipeline_local.record import summary

TASK = Classification(10)


def stage(modules, seconds, waited):
    return {
        "modules": {
            str(k): {"accuracy": k / 10, "ensemble_accuracy": k / 20, "loss": float(k)}
            for k in modules
        },
        "steps": 40,
        "resumed_after": 0,
        "seconds": seconds,
        "waited": waited,
        "peak_memory_bytes": 1000 * modules[0],
        "memory_of": "process",
        "checkpoint_stall_seconds": 0.5,
    }


def test_combine():
    facts = summary.combine([stage([1, 2], 10.0, 0.0), stage([3, 10], 8.0, 1.0)], samples=500)
    assert facts["accuracy"] == [0.1, 0.2, 0.3, 1.0]
    assert facts["ensemble_accuracy"] == [0.05, 0.1, 0.15, 0.5]
    assert facts["loss"] == [1.0, 2.0, 3.0, 10.0]
    assert facts["seconds"] == 10.0
    assert facts["samples_per_second"] == 50.0
    assert facts["efficiency"] == 1.0
    assert facts["peak_memory_bytes"] == [1000, 3000]


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        ("process", "a process of at most 3 MiB per stage (with Python and torch)"),
        ("tensors", "peak memory of at most 3 MiB per stage (tensors)"),
    ],
)
def test_what_memory_is_of(capsys, kind, words):
    """A plan's peaks are of tensors; a process is much more."""
    own = {"peak_memory_bytes": 3 * 2**20, "memory_of": kind}
    facts = summary.combine([stage([1], 10.0, 0.0) | own], samples=500)
    summary.show([summary.ModuleRow(0, "a", "classifier")], facts, TASK)
    assert words in " ".join(capsys.readouterr().out.split())


def test_efficiency_is_the_slowest_stages_busy_share():
    facts = summary.combine([stage([1], 10.0, 4.0), stage([2], 10.0, 2.0)], samples=1)
    assert facts["efficiency"] == pytest.approx(0.8)


def test_predicted_stage_times_stand_beside_measured_ones(capsys):
    plan = summary.StageTimes([0.2, 0.3], steps=40)
    stages = [stage([1], 10.0, 2.0), stage([2], 10.0, 0.0)]
    facts = summary.combine(stages, 500, plan)
    assert facts["stage_seconds"] == [0.2, 0.25]
    assert facts["predicted_stage_seconds"] == [0.2, 0.3]
    rows = [summary.ModuleRow(0, "a", "linear"), summary.ModuleRow(1, "b", "classifier")]
    summary.show(rows, facts, TASK)
    assert "(predicted): 200.0 (200.0), 250.0 (300.0)" in capsys.readouterr().out
    assert "stage_seconds" not in summary.combine(stages, 500)


def test_write_and_show(tmp_path, capsys):
    facts = summary.combine([stage([1, 2], 10.0, 0.0)], samples=500)
    path = tmp_path / "summary.json"
    summary.write(facts, path)
    assert json.loads(path.read_text()) == facts
    assert [p.name for p in tmp_path.iterdir()] == ["summary.json"]
    summary.show(
        [summary.ModuleRow(0, "stem", "linear"), summary.ModuleRow(0, "b1 .. b3", "classifier")],
        facts,
        TASK,
    )
    shown = capsys.readouterr().out
    assert "20.00 %" in shown
    assert "b1 .. b3" in shown
    assert "40 steps in 10.0 s, 50 samples/s" in shown
    summary.show([summary.ModuleRow(0, "stem", "linear")] * 2, {**facts, "resumed_after": 30}, TASK)
    assert "10 of 40 steps in 10.0 s" in capsys.readouterr().out


def test_a_stop_before_any_evaluation_has_no_scores(tmp_path, capsys):
    facts = summary.combine([{**stage([1], 10.0, 0.0), "modules": {}}], samples=500)
    summary.show([summary.ModuleRow(0, "stem", "classifier")], facts, TASK)
    shown = capsys.readouterr().out
    assert "there are no scores" in shown
    assert "40 steps in 10.0 s" in shown
    with pytest.raises(UserError, match=r"summary.json cannot be written \(No such file or dir"):
        summary.write(facts, tmp_path / "gone" / "summary.json")
