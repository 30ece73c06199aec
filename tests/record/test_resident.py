"""The peak of a process is its own."""

import subprocess
import sys
from pathlib import Path

import pytest

from pipeline_local.record import resident

ROOT = Path(__file__).parent.parent.parent
CHILD = """
from pipeline_local.record import resident
before = resident.peak()
held = b"x" * (100 << 20)
del held
print(before, resident.peak())
"""
PARENT = """
import subprocess, sys
held = b"x" * (400 << 20)
subprocess.run([sys.executable, "-c", sys.argv[1]], check=True)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="others do not tell it")
def test_a_child_has_not_the_peak_of_its_parent():
    """As of ranks that a program with large data has started."""
    command = [sys.executable, "-c", PARENT, CHILD]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    before, after = map(int, done.stdout.split())
    assert before + (90 << 20) < after < 200 << 20


def test_elsewhere_the_system_is_asked(monkeypatch):
    stated = resident.peak()
    monkeypatch.setattr(resident, "status", lambda _: None)
    assert resident.peak() > stated // 2
