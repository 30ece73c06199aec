"""Tables fit where they go, and a reader who leaves stops nobody."""

import contextlib
import fcntl
import io
import os
import pty
import struct
import subprocess
import sys
import termios

import pytest
from rich.table import Table

from pipeline_local.console.screen import (
    WIDTH,
    Screen,
    complain,
    is_terminal,
    new_table,
    say,
    warn,
)


def test_a_file_is_wide(monkeypatch):
    monkeypatch.delenv("COLUMNS", raising=False)
    assert Screen().width == WIDTH


def test_columns_are_obeyed(monkeypatch):
    monkeypatch.setenv("COLUMNS", "77")
    assert Screen().width == 77


@pytest.mark.parametrize("value", ["0", "1", "-5", "wide", "", "39", "4" * 30])
@pytest.mark.parametrize("term", ["dumb", "", "xterm"])
def test_columns_that_are_none_count_as_unknown(monkeypatch, capsys, value, term):
    """As containers and editors export it, whose terminals tell no size."""
    with monkeypatch.context() as patch:  # pytest reads them itself when it reports
        patch.setenv("COLUMNS", value)
        patch.setenv("TERM", term)
        assert Screen().width == WIDTH
        Screen().print("text")
    assert capsys.readouterr().out == "text\n"


@pytest.mark.parametrize(("columns", "first"), [("99", "a b"), ("100", "\u250f")])
def test_tables_have_lines_where_there_is_room(monkeypatch, columns, first):
    monkeypatch.setenv("COLUMNS", columns)
    table = new_table()
    for name in "ab":
        table.add_column(name)
    assert Screen().drawn(table).startswith(first)


def test_a_terminal_without_a_size(monkeypatch):
    """As docker run -t and expect make them."""
    terminal, line = pty.openpty()
    monkeypatch.setenv("COLUMNS", "0")
    with os.fdopen(line, "w") as stdout, contextlib.redirect_stdout(stdout):
        assert Screen().width == WIDTH
        fcntl.ioctl(line, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 99, 0, 0))
        assert Screen().width == 99
    os.close(terminal)


class WriteOnly:
    """All that a logging object may have."""

    def __init__(self):
        self.text = ""

    def write(self, text):
        self.text += text


def closed():
    stream = io.StringIO()
    stream.close()
    return stream


STREAMS = {"none": None, "write only": WriteOnly(), "closed": closed(), "text": io.StringIO()}


@pytest.mark.parametrize("stream", STREAMS.values(), ids=STREAMS)
def test_a_program_may_have_anything_as_stdout(stream):
    with contextlib.redirect_stdout(stream), contextlib.redirect_stderr(stream):
        say("line")
        complain("line")
        Screen().print("line")
        assert not is_terminal()
    if isinstance(stream, WriteOnly):
        assert stream.text == "line\n" * 3


def test_each_warning_is_a_line(capsys):
    warn("one", "two")
    warn()
    assert capsys.readouterr().err == "warning: one\nwarning: two\n"


def test_letters_that_stdout_does_not_have():
    """As with LC_ALL=C: no error, and a table has other lines."""
    written = io.BytesIO()
    table = Table("K\u00e4fer")
    stdout = io.TextIOWrapper(written, "ascii", write_through=True)
    with contextlib.redirect_stdout(stdout):
        say("K\u00e4fer")
        Screen().print(table)
    line, *drawn = written.getvalue().decode("ascii").splitlines()
    assert line == "K?fer"
    assert drawn[0].startswith("+-")


@pytest.mark.parametrize("speak", ["say", "Screen().print"])
def test_a_closed_pipe_is_no_end(speak):
    """As under `| head -1`: the reader has left after one line, the process goes on to its end."""
    script = f"""
import sys
from pipeline_local.console.screen import Screen, say
say("first")
sys.stdin.readline()  # until the reader has left
for _ in range(3):
    {speak}("unheard")
sys.stderr.write("went on")
"""
    command = [sys.executable, "-c", script]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with subprocess.Popen(command, text=True, **pipes) as process:
        assert process.stdout.readline() == "first\n"
        process.stdout.close()
        process.stdout = None
        _, errors = process.communicate("left\n", timeout=60)
    assert (process.returncode, errors) == (0, "went on")


UNHEARD = """
import sys
from pathlib import Path
from pipeline_local.console.screen import Screen, complain, say
sys.stdin.readline()  # until nobody listens
for speak in (say, Screen().print, complain):
    speak("unheard")
Path(sys.argv[1]).write_text("went on")
"""


def test_a_full_disk_is_no_end(tmp_path):
    command = [sys.executable, "-c", UNHEARD, str(tmp_path / "end")]
    with open("/dev/full", "w") as full:
        run = subprocess.run(command, input="", stdout=full, stderr=full, text=True, check=False)
    assert run.returncode == 0
    assert (tmp_path / "end").read_text() == "went on"


def test_a_lost_terminal_is_no_end(tmp_path):
    """As when an ssh connection breaks and the run is under nohup."""
    terminal, line = pty.openpty()
    command = [sys.executable, "-c", UNHEARD, str(tmp_path / "end")]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=line, stderr=line) as process:
        os.close(line)
        os.close(terminal)
        process.communicate(b"gone\n", timeout=60)
    assert process.returncode == 0
    assert (tmp_path / "end").read_text() == "went on"
