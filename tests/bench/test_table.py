"""Rows of what was measured: the slowest rank counts, of the median turn."""

import json
from dataclasses import replace

import pytest

from pipeline_local.bench import table
from pipeline_local.bench.baseline import Idle
from pipeline_local.bench.harness import Contestant, Measured, RankResult
from pipeline_local.cli import main
from pipeline_local.configfile import configfile

BASELINE = Idle()


def entry(name, ranks=2, microbatches=1, isolates=""):
    return Contestant(name, ranks, microbatches, BASELINE, 1, isolates)


def result(*seconds, waited=None, busy=None, **more):
    spent = {"waited": waited, "busy": busy}
    known = {name: value for name, value in spent.items() if value is not None}
    return RankResult(list(seconds), [known for _ in seconds], peak=100, resident=None, **more)


MEASURED = [
    Measured(entry("bp", ranks=1), [result(4.0, 8.0, 6.0), result(0.0, 0.0, 0.0)]),
    Measured(
        entry("1f1b", microbatches=2),
        [result(3.0, 2.0, 3.0, busy=2.0), result(1.0, 3.0, 3.0, busy=1.0)],
    ),
    Measured(
        entry("local"),
        [
            result(2.0, 2.0, 2.0, waited=0.1, flops=(3, 20)),
            result(2.0, 1.0, 1.0, waited=1.0, flops=(0, 10)),
        ],
    ),
    Measured(
        entry("local, isolated stages", isolates="local"),
        [result(1.9, 1.9, 1.9), result(1.0, 1.0, 1.0)],
    ),
    Measured(entry("deepspeed", microbatches=2), [RankResult(reason="not today")] * 2),
]


@pytest.fixture
def rows():
    return {row.method: row for row in table.rows(MEASURED, batch_size=30, steps=2)}


def test_the_slowest_rank_of_the_median_turn(rows):
    assert list(rows) == ["bp", "1f1b", "local", "deepspeed"]
    assert rows["bp"].step_seconds == 3.0
    assert rows["bp"].spread == pytest.approx(4 / 6)
    assert rows["1f1b"].step_seconds == 1.5
    assert rows["1f1b"].spread == 0
    assert rows["local"].samples_per_second == 30
    assert rows["1f1b"].turns == [1.5, 1.5, 1.5]
    assert rows["deepspeed"].turns is None


def test_ratios_are_to_1f1b(rows):
    assert rows["1f1b"].ratio == 1
    assert rows["bp"].ratio == 0.5
    assert rows["local"].ratio == 1.5
    without = [one for one in MEASURED if one.entry.name != "1f1b"]
    assert table.rows(without, 30, 2)[0].ratio == 1


def test_what_only_some_baselines_have(rows):
    assert rows["bp"].peak_memory_bytes == [100]  # the other rank has no part in it
    assert rows["local"].overhead == pytest.approx(3 / 30)
    assert rows["local"].efficiency == pytest.approx(1.9 / 2)
    assert rows["local"].waited == pytest.approx([0.05, 0.5])
    assert rows["1f1b"].waited is None
    assert rows["1f1b"].bubble == pytest.approx(1 - (2 + 1) / 2 / 3)
    assert rows["1f1b"].bubble_in_theory == pytest.approx(1 / 3)
    assert rows["local"].bubble_in_theory is None


def test_markdown(rows):
    lines = table.markdown(list(rows.values())).splitlines()
    assert len({line.count("|") for line in lines}) == 1
    assert "| over 1f1b |" in lines[0]
    assert lines[4].startswith(
        "| local | 2 | 1 | 10.0% | 1000.0 | 0.0% | 30.0 | 1.50x | 0.0, 0.0 |"
    )
    seen = replace(rows["local"], resident_peak_bytes=[7_000_000, 12_400_000])
    assert "| 0.0, 0.0 (7, 12) |" in table.markdown([seen])
    assert "not today" in lines[5]


def test_no_baseline_ran():
    (row,) = table.rows(MEASURED[-1:], 30, 2)
    assert (row.ratio, row.reason) == (None, "not today")


TREE = {
    "model": {"name": "mlp", "hidden": 16, "depth": 2},
    "data": {"name": "digits", "batch_size": 16},
    "modules": {"count": 2},
    "head": {"name": "linear"},
    "reconcile": {"weight": 0.1, "every": 1},
    "train": {"steps": 1},
    "parallel": {"threads": 1},
}


def test_command(tmp_path, capsys):
    """On one device; bench CONFIG is short for bench baselines CONFIG."""
    path, out = tmp_path / "c.yaml", tmp_path / "rows.json"
    path.write_text(configfile.dump(configfile.parse(TREE)))
    command = [str(path), "--baselines", "bp,1f1b,local", "--runs", "1", "--steps", "1"]
    assert main(["bench", *command, "--json", str(out)]) == 0
    shown = capsys.readouterr().out
    assert "model mlp, batch 16, modules 2, head linear" in shown
    assert "| local, reconciled | 1 |" in shown
    facts = json.loads(out.read_text())
    names = ["bp", "1f1b", "local", "local, reconciled"]
    assert [row["method"] for row in facts["rows"]] == names
    assert [row["peer"] for row in facts["rows"]] == names, "as older files have it"
    assert facts["rows"][0]["ratio"] == 1
    assert facts["threads"] == 1
    assert facts["rows"][0]["turns"] == [facts["rows"][0]["step_seconds"]]
    assert main(["bench", "baselines", *command, "--json", str(out)]) == 2
    assert "never overwritten" in capsys.readouterr().err
    assert json.loads(out.read_text()) == facts


def test_the_old_spelling_names_the_new_one(tmp_path, capsys):
    path = tmp_path / "c.yaml"
    path.write_text(configfile.dump(configfile.parse(TREE)))
    for command in (["peers", str(path), "--peers=x"], [str(path), "--peers", "x"]):
        assert main(["bench", *command]) == 2
        first, second = capsys.readouterr().err.splitlines()
        assert first.endswith("is now `bench baselines CONFIG --baselines`")
        assert second.startswith("error: --baselines: got 'x'")
