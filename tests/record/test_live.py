"""The live view has a row for every module, or for every stage, and fits its terminal."""

import os
from types import SimpleNamespace

import pytest

from pipeline_local.console import footer
from pipeline_local.learning.tasks import Classification, NextToken
from pipeline_local.record import live, progress
from pipeline_local.record.live import LiveView
from pipeline_local.record.progress import Course, Progress, Quiet, Silent
from tests.terminal import Terminal

PLAN = SimpleNamespace(num_steps=3120, steps_per_epoch=78)


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
    """Makes one, on which the view is shown."""

    def of(columns, lines):
        made = Terminal(columns, lines)
        monkeypatch.setattr("sys.stdout.isatty", lambda: True)
        monkeypatch.setenv("TERM", "xterm")
        monkeypatch.setenv("COLUMNS", str(columns))
        for module in (footer, live):
            monkeypatch.setattr(module, "height", lambda: lines)
            monkeypatch.setattr(module, "say", lambda text, end="\n": made.take(text + end))
        return made

    yield of
    footer._shown.clear()


@pytest.mark.parametrize("columns", [80, 140])
@pytest.mark.parametrize("count", [2, 16])
def test_it_fits(terminal, columns, count):
    shown = terminal(columns, 24)
    stages = [range(k, k + 1) for k in range(count)]
    seen = [facts(k, part) for k, part in enumerate(stages)]
    LiveView(Course(PLAN, 0), stages, Classification(10)).show(seen, [scores_of(range(count))])
    bar, *_, heading = shown.rows[:3]
    assert bar.startswith("step 156/3120")
    assert all(part in bar for part in ("epoch 2.0/40", "12346 samples/s", "left"))
    assert heading.split()[:2] == ["module", "loss"]
    assert "process" in shown.rows[1], "with Python and torch"
    assert len(shown.rows) == 3 + count, "within 24 rows"
    for number, row in enumerate(shown.rows[3:]):
        cells = f"{number + 1} 1.234 75.1% -0.25 {number} 12346 70% 25% 5% 12345 -"
        assert row.split() == cells.split()


def test_a_language_model_fits(terminal):
    shown = terminal(80, 24)
    view = LiveView(Course(PLAN, 0), [range(2), range(2, 4)], NextToken(8192, (512,)))
    view.show([facts(0, range(2)), facts(1, range(2, 4))], [scores_of(range(4))])
    assert [float(row.split()[2]) for row in shown.rows[3:]] == [123.4] * 4
    assert shown.rows[3].split()[5] == "6320947", "tokens per second"
    assert shown.rows[3].endswith(" -"), "the last column is there"


def test_large_k_has_a_row_for_each_stage(terminal):
    """With the values of its last module."""
    shown = terminal(80, 12)
    LiveView(Course(PLAN, 0), [range(8), range(8, 16)], Classification(10)).show(
        [facts(0, range(8)), facts(1, range(8, 16))], []
    )
    assert [row.split()[0] for row in shown.rows[-2:]] == ["1-8", "9-16"]


@pytest.mark.parametrize(("lines", "named"), [(24, ["0.0", "0.1", "0.2"]), (10, ["0.0", "0.1"])])
def test_replicas_stand_beside_the_modules_of_their_stage(terminal, lines, named):
    """Those without a module beside them have a row where there is room."""
    shown = terminal(80, lines)
    stages = [range(2), range(2, 4)]
    seen = [facts(n, stages[n] if r == 0 else (), replica=r) for r in range(3) for n in range(2)]
    seen[2]["waiting_down"] = 0.6
    LiveView(Course(PLAN, 0), stages, Classification(10)).show(seen, [])
    table = "\n".join(shown.rows[2:])
    assert [name for name in ("0.0", "0.1", "0.2") if f" {name} " in table] == named
    assert f"2 1.234 - -0.25 {named[1]} 12346 15% 25% 60% 12345 -".split() in [
        row.split() for row in shown.rows
    ]


def test_never_more_rows_than_the_terminal_has(terminal):
    shown = terminal(80, 12)
    shown.take("hello\n")
    stages = [range(k, k + 1) for k in range(30)]
    view = LiveView(Course(PLAN, 0), stages, Classification(10))
    for _ in range(2):
        view.show([facts(0, range(1))], [])
        assert len(shown.rows) == 11
        assert shown.rows[0] == "hello"


def test_stages_that_have_not_reported(terminal):
    shown = terminal(80, 24)
    view = LiveView(Course(PLAN, 0), [range(1), range(1, 2), range(2, 3)], Classification(10))
    view.show([], [])
    assert shown.rows == []
    view.show([facts(0, range(1)), facts(2, range(2, 3))], [])
    assert shown.rows[-2].split() == ["2", "-", "-", "-", "1", *"------"]


def test_it_is_drawn_over_itself(terminal):
    shown = terminal(80, 24)
    view = LiveView(Course(PLAN, 0), [range(2)], Classification(10))
    view.announce(["the plan"])
    view.show([facts(0, range(2))], [])
    shown.take("[stage 1 | rank 1] a warning\n")
    view.show([facts(0, range(2), step=312)], [])
    view.close()
    view.announce(["the end"])
    plan, warning, bar, *table, end = shown.rows
    assert (plan, warning, end) == ("the plan", "[stage 1 | rank 1] a warning", "the end")
    assert bar.startswith("step 312/3120")
    assert len(table) == 4


def test_time_left(terminal, monkeypatch):
    shown = terminal(80, 24)
    now = iter([1000.0, 1060.0])
    monkeypatch.setattr(progress.time, "monotonic", lambda: next(now))
    LiveView(Course(PLAN, 96), [range(1)], Classification(10)).show([facts(0, range(1))], [])
    assert "49:24 left" in shown.rows[0], "60 steps a minute, and 2964 to go"


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
    monkeypatch.setenv("TERM", "dumb")
    assert kind() is Progress, "such as a shell in an editor, which would show the signs"
    monkeypatch.setenv("TERM", "xterm")
    run.quiet = True
    assert kind() is Quiet


def test_the_height_of_no_terminal():
    from pipeline_local.console.screen import ROWS, height

    assert height() == ROWS or os.isatty(1)
