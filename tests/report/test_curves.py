"""A curve for each module, and the staircase."""

import json

import pytest

from pipeline_local.report.chart import DASHES, PALETTE, colour_of
from pipeline_local.report.curves import MOST_POINTS, curves, staircases
from pipeline_local.report.run import read
from tests.report.folders import make_run


@pytest.fixture
def one(tmp_path):
    return read([make_run(tmp_path / "first")])


@pytest.fixture
def two(tmp_path):
    return read([make_run(tmp_path / name) for name in ("first", "second")])


def by_title(charts):
    return {chart.title: chart for chart in charts}


def test_a_curve_for_each_module(one):
    charts = by_title(curves(one))
    assert [*charts] == ["Training loss", "Accuracy on the test set", "Discord", "Cosine"]
    first, second = charts["Training loss"].traces
    assert (first["x"], first["y"]) == ([2, 4, 8], [1.0, 0.5, 0.25])
    assert second["y"] == [2.0, 1.5, 1.25]
    assert first["meta"]["x"] == {"step": [2, 4, 8], "epoch": [0.5, 1, 2], "minute": [0, 2, 6]}
    assert [trace["y"] for trace in charts["Accuracy on the test set"].traces] == [
        [0.5, 0.75],
        [0.75, 0.875],
    ]
    assert [entry.text for entry in charts["Training loss"].legend] == ["module 1", "module 2"]


def test_a_boundary_lies_between_two_modules(one):
    charts = by_title(curves(one))
    (discord,) = charts["Discord"].traces
    assert discord["y"] == [0.25, 0.125, 0.0625]
    assert [entry.text for entry in charts["Discord"].legend] == ["modules 1 | 2"]
    assert charts["Discord"].layout["yaxis"]["type"] == "log"
    assert charts["Cosine"].traces[0]["y"] == [0.25] * 3


def test_runs_over_each_other(two):
    chart = by_title(curves(two))["Training loss"]
    lines = [(trace["line"]["color"], trace["line"]["dash"]) for trace in chart.traces]
    assert lines == [(PALETTE[k], dash) for dash in DASHES[:2] for k in range(2)]
    assert [entry.text for entry in chart.legend] == ["module 1", "module 2", "first", "second"]
    known = {key for trace in chart.traces for key in trace["meta"]["keys"]}
    assert {entry.key for entry in chart.legend} == known


def test_a_legend_has_no_run_without_a_curve(tmp_path):
    paths = [make_run(tmp_path / name) for name in ("first", "second")]
    file = read(paths)[1].folder.metrics(1)
    file.write_text(file.read_text().replace("cosine", "other"))
    charts = by_title(curves(read(paths)))
    assert [entry.text for entry in charts["Discord"].legend] == [
        "modules 1 | 2",
        "first",
        "second",
    ]
    assert [entry.text for entry in charts["Cosine"].legend] == ["modules 1 | 2", "first"]


def test_every_figure_is_one_of_plotly(two):
    for chart in [*curves(two), *staircases(two)]:
        figure = chart.figure()
        assert len(figure["data"]) == len(chart.traces)
        assert "template" not in figure["layout"]
        json.dumps(figure, allow_nan=False)


def test_a_long_run_keeps_its_last_point(one):
    (path,) = (run.folder for run in one)
    line = json.loads(path.metrics(0).read_text().splitlines()[0])
    count = 2 * MOST_POINTS + 1
    text = "".join(json.dumps({**line, "step": step}) + "\n" for step in range(1, count + 1))
    path.metrics(0).write_text(text)
    loss = by_title(curves(read([path.path])))["Training loss"].traces[0]
    assert len(loss["x"]) <= MOST_POINTS + 1
    assert loss["x"][-1] == count


def test_the_staircase(one):
    (chart,) = staircases(one)
    alone, together = chart.traces
    assert (alone["x"], alone["y"]) == ([1, 2], [0.75, 0.875])
    assert together["y"] == [0.75, 0.8125]
    assert alone["line"]["shape"] == "hvh"
    assert [entry.text for entry in chart.legend] == ["alone", "together"]


def test_a_language_model_beside_another_task(tmp_path):
    """Its perplexity has a chart of its own, and its accuracy is none of the others'."""
    paths = [make_run(tmp_path / name) for name in ("images", "words")]
    config = paths[1] / "config.yaml"
    config.write_text(config.read_text().replace("name: classification", "name: mine"))
    for file in (paths[1] / "metrics").iterdir():
        text = file.read_text().replace('"accuracy"', '"perplexity"')
        file.write_text(text.replace("ensemble_accuracy", "ensemble_perplexity"))
    runs = read(paths)
    charts = by_title(curves(runs))
    own = charts["Perplexity on the test set"]
    assert own.layout["yaxis"]["type"] == "log"
    assert {trace["meta"]["keys"][1] for trace in own.traces} == {"run:1"}
    assert len(charts["Accuracy on the test set"].traces) == 2
    assert [*by_title(staircases(runs))] == ["Accuracy, head by head", "Perplexity, head by head"]


def test_colours_of_many_modules_differ():
    for count in (1, 7, 8, 33):
        assert len({colour_of(k, count) for k in range(count)}) == count
