"""Tables fit where they go, and a reader who leaves stops nobody."""

import subprocess
import sys

import pytest

from pipeline_local.record.screen import WIDTH, Screen


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
from pipeline_local.record.screen import Screen, say
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
