"""Tables fit where they go, and a reader who leaves stops nobody."""

import os
import pty
import subprocess
import sys

import pytest

from pipeline_local.screen import WIDTH, Screen


def test_a_file_is_wide(monkeypatch):
    monkeypatch.delenv("COLUMNS", raising=False)
    assert Screen().width == WIDTH


def test_columns_are_obeyed(monkeypatch):
    monkeypatch.setenv("COLUMNS", "77")
    assert Screen().width == 77


@pytest.mark.parametrize("speak", ["say", "Screen().print"])
def test_a_closed_pipe_is_no_end(speak):
    """As under `| head -1`: the reader has left after one line, the process goes on to its end."""
    script = f"""
import sys
from pipeline_local.screen import Screen, say
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
from pipeline_local.screen import Screen, complain, say
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
