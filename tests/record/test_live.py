"""The live view has a row for every module, or for every stage, and fits its terminal."""

import os
import re
from types import SimpleNamespace

import pytest

from pipeline_local.learning.tasks import Classification, NextToken
from pipeline_local.record import live
from pipeline_local.record.live import LiveView
from pipeline_local.record.progress import Progress, Quiet, Silent

PLAN = SimpleNamespace(num_steps=3120, steps_per_epoch=78)


def rows(text):
    return re.sub(r"\x1b\[[0-9;]*[A-Za-z]", "", text).replace("\r", "").splitlines()


def facts(stage, modules, step=156, **more):
    row = {"loss": 1.2345, "cosine": -0.25}
    return {
        "stage": stage,
        "step": step,
        "samples_per_second": 12345.6,
        "waiting_up": 0.25,
        "waiting_down": 0.05,
        "memory_bytes": 12345 * 2**20,
        "modules": {str(index + 1): row for index in modules},
        **more,
    }


def scores_of(modules):
    row = {"accuracy": 0.7512, "perplexity": 123.4, "loss": 1.0}
    return {"step": 100, "modules": {str(index + 1): row for index in modules}}


@pytest.fixture
def terminal(monkeypatch):
    def of(columns, lines):
        monkeypatch.setattr("sys.stdout.isatty", lambda: True)
        monkeypatch.setenv("COLUMNS", str(columns))
        monkeypatch.setattr(live, "height", lambda: lines)

    return of


@pytest.mark.parametrize("columns", [80, 140])
@pytest.mark.parametrize("count", [2, 16])
def test_it_fits(terminal, capsys, columns, count):
    terminal(columns, 24)
    stages = [range(k, k + 1) for k in range(count)]
    seen = [facts(k, part) for k, part in enumerate(stages)]
    LiveView(PLAN, stages, Classification(10)).show(seen, [scores_of(range(count))])
    shown = rows(capsys.readouterr().out)
    assert max(map(len, shown)) <= columns
    bar, *_, heading = shown[:3]
    assert bar.startswith("step 156/3120")
    assert all(part in bar for part in ("epoch 2.0/40", "12346 samples/s", "left"))
    assert heading.split()[:2] == ["module", "loss"]
    assert len(shown) == 3 + count, "within 24 rows"
    for number, row in enumerate(shown[3:]):
        cells = f"{number + 1} 1.234 75.1% -0.25 {number} 70% 25% 5% 12345 -"
        assert row.split() == cells.split()


def test_a_language_model_fits(terminal, capsys):
    terminal(80, 24)
    view = LiveView(PLAN, [range(2), range(2, 4)], NextToken(8192, (512,)))
    view.show([facts(0, range(2)), facts(1, range(2, 4))], [scores_of(range(4))])
    shown = rows(capsys.readouterr().out)
    assert max(map(len, shown)) <= 80
    assert [float(row.split()[2]) for row in shown[3:]] == [123.4] * 4


def test_large_k_has_a_row_for_each_stage(terminal, capsys):
    """With the values of its last module."""
    terminal(80, 12)
    LiveView(PLAN, [range(8), range(8, 16)], Classification(10)).show(
        [facts(0, range(8)), facts(1, range(8, 16))], []
    )
    shown = rows(capsys.readouterr().out)
    assert [row.split()[0] for row in shown[-2:]] == ["1-8", "9-16"]


def test_never_more_rows_than_the_terminal_has(terminal, capsys):
    terminal(80, 12)
    stages = [range(k, k + 1) for k in range(30)]
    view = LiveView(PLAN, stages, Classification(10))
    for _ in range(2):
        view.show([facts(0, range(1))], [])
        assert len(rows(capsys.readouterr().out)) == 11


def test_stages_that_have_not_reported(terminal, capsys):
    terminal(80, 24)
    view = LiveView(PLAN, [range(1), range(1, 2), range(2, 3)], Classification(10))
    view.show([], [])
    assert capsys.readouterr().out == ""
    view.show([facts(0, range(1)), facts(2, range(2, 3))], [])
    second = rows(capsys.readouterr().out)[-2]
    assert second.split() == ["2", "-", "-", "-", "1", "-", "-", "-", "-", "-"]


def test_it_is_drawn_over_itself(terminal, capsys):
    terminal(80, 24)
    view = LiveView(PLAN, [range(2)], Classification(10))
    view.show([facts(0, range(2))], [])
    first = capsys.readouterr().out
    view.show([facts(0, range(2), step=312)], [])
    again = capsys.readouterr().out
    assert again.count("\x1b[1A\x1b[2K") == first.count("\n")
    view.close()
    view.show([facts(0, range(2), step=390)], [])
    assert "\x1b[1A" not in capsys.readouterr().out, "what was left stays"


def test_time_left(terminal, capsys, monkeypatch):
    terminal(80, 24)
    now = iter([1000.0, 1060.0])
    monkeypatch.setattr(live.time, "monotonic", lambda: next(now))
    LiveView(PLAN, [range(1)], Classification(10), start=96).show([facts(0, range(1))], [])
    assert "49:24 left" in capsys.readouterr().out, "60 steps a minute, and 2964 to go"


def test_who_shows_what(terminal, monkeypatch):
    run = SimpleNamespace(quiet=False)
    blueprint = SimpleNamespace(
        config=SimpleNamespace(run=run), run_plan=PLAN, task=Classification(10), modules=[1, 2]
    )

    def kind(rank=0):
        return type(live.display(blueprint, [range(2)], rank, 0))

    assert kind() is Progress
    assert kind(rank=1) is Silent
    terminal(80, 24)
    assert kind() is LiveView
    run.quiet = True
    assert kind() is Quiet


def test_the_height_of_no_terminal():
    from pipeline_local.screen import ROWS, height

    assert height() == ROWS or os.isatty(1)
