"""Bars over text files: there while they are read, and gone afterwards."""

import io

import pytest

from pipeline_local.text import progress
from pipeline_local.text.writing import Texts
from tests.terminal import Terminal


class Stderr(io.StringIO):
    """What is written to it is shown on a terminal, or kept where there is none."""

    def __init__(self, terminal):
        super().__init__()
        self.terminal = terminal

    def isatty(self):
        return self.terminal is not None

    def write(self, text):
        if self.terminal:
            self.terminal.take(text)
        return super().write(text)


@pytest.fixture
def splits(tmp_path, monkeypatch):
    for name, value in {"COLUMNS": "80", "LINES": "24", "TERM": "xterm"}.items():
        monkeypatch.setenv(name, value)
    found = {}
    for name, size in {"train": 4000, "test": 500}.items():
        (path := tmp_path / f"{name}.txt").write_text("a" * size)
        found[name] = Texts((path,), "text")
    return found


def test_bars_appear_move_and_go(splits, monkeypatch):
    terminal = Terminal(80, 24)
    monkeypatch.setattr("sys.stderr", written := Stderr(terminal))
    with progress.shown(splits) as told:
        bars = terminal.rows
        assert [bar.split()[0] for bar in bars] == ["train", "test"]
        assert ["0/4.0 kB" in bars[0], "0/500 bytes" in bars[1]] == [True, True]
        told("train")(3000)
        told("test")(500)
    assert terminal.rows == []
    assert "3.0/4.0 kB" in written.getvalue(), "as it was in the end"


def test_without_a_terminal_nothing_is_written(splits, monkeypatch):
    monkeypatch.setattr("sys.stderr", written := Stderr(None))
    with progress.shown(splits) as told:
        told("train")(4000)
    assert not written.getvalue().strip()
