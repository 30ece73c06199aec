"""What differs between two runs."""

import pytest

from pipeline_local.cli import main
from pipeline_local.report import compare
from pipeline_local.report.run import read
from tests.report.folders import cut_off, make_run


@pytest.fixture
def paths(tmp_path):
    first = make_run(tmp_path / "first")
    second = make_run(tmp_path / "second", {"model": {"hidden": 16}, "train": {"seed": 3}})
    for file in (second / "metrics").iterdir():
        file.write_text(file.read_text().replace('"accuracy": 0.875', '"accuracy": 0.9'))
    return first, second


def differing(rows):
    return {row.name: row.texts for row in rows if row.differs}


def test_what_differs(paths):
    runs = read(paths)
    assert differing(compare.settings(runs)) == {
        "model.hidden": ["8", "16"],
        "train.seed": ["0", "3"],
    }
    assert differing(compare.environment(runs)) == {}
    (row,) = (row for row in compare.results(runs) if row.differs)
    assert (row.name, row.texts, row.change) == (
        "accuracy, head 2",
        ["87.50%", "90.00%"],
        "+2.50 points",
    )


def test_what_one_of_them_lacks(paths):
    cut_off(paths[1])
    (paths[1] / "environment.json").unlink()
    runs = read(paths)
    rows = differing(compare.results(runs))
    assert rows["finished"] == ["yes", "no"]
    assert rows["seconds of training"] == ["75.5", "-"]
    assert rows["test loss, head 2"] == ["0.125", "0.25"]
    assert differing(compare.environment(runs))["torch"][1] == "-"


def test_the_command(paths, capsys):
    assert main(["compare", *map(str, paths)]) == 0
    shown = capsys.readouterr().out
    for text in ("first", "second", "model.hidden", "train.seed", "accuracy, head 2", "+2.50"):
        assert text in shown
    assert "optimizer.lr" not in shown, "it is the same"
    assert "The same: results" in shown


def test_runs_that_are_alike(tmp_path, capsys):
    paths = [str(make_run(tmp_path / name)) for name in ("first", "second")]
    assert main(["compare", *paths]) == 0
    assert capsys.readouterr().out.startswith("The same: results")


def test_no_run(paths, tmp_path, capsys):
    assert main(["compare", str(paths[0]), str(tmp_path)]) == 2
    assert "is not a run folder" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("values", "change"),
    [((2.0, 3.0), "+50.0%"), ((0.0, 1.0), ""), (("a", "b"), ""), ((1.0, None), "")],
)
def test_changes(values, change):
    assert compare.ComparisonRow("", values, compare.number).change == change
