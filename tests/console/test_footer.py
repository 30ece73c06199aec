"""The rows at the bottom of a terminal stay there, and what others print stays, too."""

import os
import subprocess
import sys

import pytest

from pipeline_local.console import footer
from pipeline_local.console.footer import ALL_ROWS, Footer
from tests.terminal import Terminal


@pytest.fixture
def terminal(monkeypatch):
    """Makes one, of which the footer knows the size."""

    def of(columns, lines):
        made = Terminal(columns, lines)
        monkeypatch.setattr(footer, "say", lambda text, end="\n": made.take(text + end))
        monkeypatch.setattr(footer, "height", lambda: made.screen.lines)
        monkeypatch.setattr(footer, "width", lambda: made.screen.columns)
        return made

    yield of
    footer._shown.clear()


@pytest.mark.parametrize("before", [0, 3, 30])
def test_rows_are_drawn_over_themselves(terminal, before):
    shown = terminal(20, 10)
    shown.take("".join(f"line {k}\n" for k in range(before)))
    rows = Footer()
    for step in range(3):
        rows.draw(["bar", f"step {step}"])
    kept = [f"line {k}" for k in range(before)]
    assert shown.history + shown.rows == [*kept, "bar", "step 2"]
    assert [row.rstrip() for row in shown.screen.display[-2:]] == ["bar", "step 2"]


def test_lines_of_others_scroll_above(terminal):
    """Of ranks that know nothing of the rows, more of them than the terminal has."""
    shown, rows = terminal(20, 8), Footer()
    rows.draw(["bar", "step 0"])
    said = []
    for step in range(1, 20):
        said.append(f"warning {step}")
        shown.take(said[-1] + "\n")
        rows.draw(["bar", f"step {step}"])
    assert shown.history + shown.rows == [*said, "bar", "step 19"]


@pytest.mark.parametrize("more", [1, -1])
def test_the_number_of_rows_may_change(terminal, more):
    shown, rows = terminal(20, 8), Footer()
    shown.take("hello\n")
    rows.draw(["a", "b"])
    rows.draw(["c"] * (2 + more))
    shown.take("again\n")
    assert shown.rows == ["hello", "again", *["c"] * (2 + more)]


@pytest.mark.parametrize(("columns", "lines"), [(20, 6), (20, 14), (10, 10), (40, 10), (12, 5)])
def test_a_terminal_that_is_resized(terminal, columns, lines):
    """Nothing of the old rows is left among the new ones, and they are at the bottom."""
    shown, rows = terminal(20, 10), Footer()
    shown.take("hello\n")
    rows.draw(["the old bar", "the old rows"])
    shown.screen.resize(lines, columns)
    rows.draw(["bar", "rows"])
    shown.take("again\n")
    rows.draw(["bar", "rows"])
    assert shown.rows[-3:] == ["again", "bar", "rows"]
    assert [row.rstrip() for row in shown.screen.display[-2:]] == ["bar", "rows"]


def test_what_is_left_is_followed_by_what_is_printed_next(terminal):
    shown, rows = terminal(20, 6), Footer()
    shown.take("hello\n")
    rows.draw(["bar", "step 1"])
    rows.close()
    rows.close()
    shown.take("".join(f"result {k}\n" for k in range(7)))
    results = [f"result {k}" for k in range(7)]
    assert shown.history + shown.rows == ["hello", "bar", "step 1", *results]


def test_a_small_terminal(terminal):
    shown, rows = terminal(10, 4), Footer()
    rows.draw(["a row that is too long", "second", "third"])
    shown.take("hello\n")
    assert shown.rows[0] == "hello"
    assert shown.rows[1:] == ["a row thag", "second"], "cut, and no more than fit"


def test_a_rank_that_is_killed_is_tidied_up_after(terminal):
    """By its launcher: the region of a rank that could not say goodbye is forgotten."""
    shown = terminal(10, 6)
    Footer().draw(["bar"])
    shown.take(ALL_ROWS)
    assert shown.screen.margins is None


def test_a_process_that_ends_at_once():
    """The watchdog ends a rank whose main thread may hold the lock of stdout."""
    script = "from pipeline_local.console.footer import Footer, leave_terminal; import os;"
    script += "Footer().draw(['bar']); leave_terminal(); leave_terminal(); os._exit(3)"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, timeout=60)
    assert done.returncode == 3
    assert done.stdout.decode().endswith(f"{ALL_ROWS}\x1b[Jbar{os.linesep}")
