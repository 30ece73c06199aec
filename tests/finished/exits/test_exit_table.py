"""What `evaluate --exits` prints and writes."""

import json

import pytest

from pipeline_local import cli
from pipeline_local.finished.exits import table
from pipeline_local.finished.exits.evaluation import ExitReport, ExitRow, ThresholdRow

REPORT = ExitReport(
    step=9,
    samples=200,
    device="cpu, 1 thread",
    exits=[
        ExitRow(1, "stem", 0.5, 0.5, 0.1, 1_000_000, 0.001),
        ExitRow(2, "layer1 .. layer2", 0.75, 0.7, 0.2, 4_000_000, 0.004),
    ],
    thresholds=[ThresholdRow(0.9, 0.7, 0.55, [0.6, 0.4])],
)


def cells(text):
    return [[c.strip() for c in line.split("│")[1:-1]] for line in text.splitlines() if "│" in line]


@pytest.fixture(autouse=True)
def wide(monkeypatch):
    """No cell is wrapped."""
    monkeypatch.setenv("COLUMNS", "140")


def test_two_tables(capsys):
    table.show(REPORT)
    shown = capsys.readouterr().out
    assert "Exits after step 9, 200 test samples, cpu, 1 thread" in shown
    assert cells(shown) == [
        ["1", "stem", "50.00%", "50.00%", "10.00%", "1", "25%", "1"],
        ["2", "layer1 .. layer2", "75.00%", "70.00%", "20.00%", "4", "100%", "4"],
        ["0.9", "70.00%", "55%", "60.0%", "40.0%"],
    ]


def test_the_command_writes_what_it_prints(exit_run, tmp_path, capsys):
    arguments = ["evaluate", str(exit_run), "--exits", "--checkpoint", "20", "--json"]
    file = tmp_path / "exits.json"
    assert cli.main([*arguments, str(file)]) == 0
    facts = json.loads(file.read_text())
    assert facts["step"] == 20
    rows = cells(capsys.readouterr().out)
    assert [f"{row['accuracy']:.2%}" for row in facts["exits"]] == [row[2] for row in rows[:3]]
    assert len(rows) == 3 + len(facts["thresholds"])
    before = file.read_text()
    assert cli.main([*arguments, str(file)]) == 2
    assert "files are never overwritten" in capsys.readouterr().err
    assert file.read_text() == before
    whole = tmp_path / "whole.json"
    assert cli.main(["evaluate", str(exit_run), "--json", str(whole)]) == 0
    assert json.loads(whole.read_text())["steps"] == 40
