"""A rank ends with its launcher, and only with a launcher."""

import os
import signal
import subprocess
import sys
import time

import pytest

from pipeline_local.ranks.orphan import LAUNCHER, LAUNCHERS

RANK = """
import time
from pipeline_local.ranks.orphan import end_with_launcher
end_with_launcher()
print("here", flush=True)
time.sleep(60)
"""
PARENT = """
import os, subprocess, sys, time
name, value = sys.argv[2].split("=")
os.environ[name] = value or str(os.getpid())
child = subprocess.Popen([sys.executable, "-c", sys.argv[1]])
print(child.pid, flush=True)
time.sleep(60)
"""


def is_alive(pid):
    try:
        with open(f"/proc/{pid}/stat") as file:
            return file.read().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False


def start(variable):
    environment = {k: v for k, v in os.environ.items() if k not in LAUNCHERS}
    return subprocess.Popen(
        [sys.executable, "-c", PARENT, RANK, variable],
        stdout=subprocess.PIPE,
        text=True,
        env=environment,
    )


@pytest.mark.parametrize(
    ("variable", "ends"),
    [
        (f"{LAUNCHER}=", True),
        ("TORCHELASTIC_RUN_ID=x", True),
        ("LOCAL_SIZE=2", True),
        ("A=b", False),
    ],
)
def test_a_rank_ends_with_its_launcher(variable, ends):
    with start(variable) as parent:
        child = int(parent.stdout.readline())
        assert parent.stdout.readline() == "here\n"
        parent.kill()
        parent.wait()
        until = time.monotonic() + (20 if ends else 0.5)
        while is_alive(child) and time.monotonic() < until:
            time.sleep(0.05)
        assert is_alive(child) != ends
        if not ends:
            os.kill(child, signal.SIGKILL)


def test_a_rank_whose_launcher_is_gone_already_ends_at_once():
    with start(f"{LAUNCHER}=1") as parent:
        child = int(parent.stdout.readline())
        until = time.monotonic() + 20
        while is_alive(child):
            assert time.monotonic() < until
            time.sleep(0.05)
        parent.kill()
