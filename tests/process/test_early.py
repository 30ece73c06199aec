"""Signals are heard before torch is loaded, and by the first process of a container."""

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch.distributed as dist

from pipeline_local.__main__ import trains
from pipeline_local.errors import EXIT_STOPPED
from pipeline_local.process import early
from pipeline_local.watch.stop import Stop
from pipeline_local.watch.store import RankStore

ROOT = Path(__file__).parents[2]


def python(script, *before, **more):
    return subprocess.Popen(
        [*before, sys.executable, "-c", script],
        stdout=subprocess.PIPE,
        text=True,
        cwd=ROOT,
        **more,
    )


@pytest.mark.parametrize("is_training", [True, False])
def test_only_training_waits_for_a_checkpoint(is_training):
    script = f"""
import os, signal
from pipeline_local.process import early
early.listen({is_training})
os.kill(os.getpid(), signal.SIGUSR1)
print(early.take(), early.take())
"""
    process = python(script)
    told, _ = process.communicate(timeout=60)
    assert process.returncode == (0 if is_training else -signal.SIGUSR1)
    assert told == ("True False\n" if is_training else "")


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [("train x.yaml", True), ("resume x", True), ("train --help", False), ("plan x", False)],
)
def test_what_trains(monkeypatch, arguments, expected):
    monkeypatch.setattr(sys, "argv", ["pipeline-local", *arguments.split()])
    assert trains() == expected


def test_a_process_hears_what_comes_before_it_listens():
    """Its launcher signals as soon as it is there."""
    script = "from pipeline_local.process import early; early.listen(True); print(early.take())"
    with early.held():
        process = python(script)
    process.send_signal(signal.SIGUSR1)
    told, _ = process.communicate(timeout=60)
    assert (process.returncode, told) == (0, "True\n")
    assert signal.SIGUSR1 not in signal.pthread_sigmask(signal.SIG_BLOCK, [])


def test_a_run_takes_over_what_was_noted():
    early.note(signal.SIGUSR1, None)
    with Stop(RankStore(dist.HashStore(), 0, 1)) as stop:
        assert stop._signal is None
        stop.listen()
        assert stop._signal == "SIGUSR1"
    assert not early.take()


def test_leaving_is_an_end_like_any_other():
    """But for what Python does after its exit functions."""
    script = """
import atexit, threading, time
from concurrent.futures import ThreadPoolExecutor
from pipeline_local.__main__ import leave
atexit.register(print, "exit functions")
print("printed", end=" ")
ThreadPoolExecutor().submit(time.sleep, 0)
threading.Thread(target=lambda: time.sleep(0.5) or print("threads", end=" ")).start()
leave(7)
"""
    process = python(script)
    told, _ = process.communicate(timeout=60)
    assert (process.returncode, told) == (7, "printed threads exit functions\n")


STUCK = """
import os, sys, threading
from pipeline_local import __main__ as command
def fail():
    threading.Thread(target=threading.Event().wait).start()
    print("its lines")
    raise RuntimeError("a traceback")
command.main, sys.argv = fail, ["pipeline-local", "train"]
os.environ["RANK"] = "1"
command.LAST_SECONDS = 0.5
command.program()
"""


def test_a_rank_that_has_failed_waits_for_no_thread_that_never_ends():
    """It may wait for a device, which waits for a rank that is gone."""
    process = python(STUCK, stderr=subprocess.PIPE)
    told, errors = process.communicate(timeout=60)
    assert (process.returncode, told) == (1, "its lines\n")
    assert errors.endswith("RuntimeError: a traceback\n")


FIRST = """
import os, signal, subprocess, sys, time
from pipeline_local.process import early
assert os.getpid() == 1
early.run_under_init()
assert os.getpid() != 1 and not signal.pthread_sigmask(signal.SIG_BLOCK, [])
"""
WAITS = f"{FIRST}print('here', flush=True); time.sleep(60)"
ENDS = f"{FIRST}sys.exit(75)"
ORPHAN = f"""{FIRST}
subprocess.run(["sh", "-c", "sleep 0.1 &"])
time.sleep(1)
states = [open(f"/proc/{{p}}/stat").read().split()[2] for p in os.listdir("/proc") if p.isdigit()]
sys.exit("Z" in states)
"""
UNSHARE = ("unshare", "--pid", "--fork", "--kill-child", "--mount-proc")


def may_unshare():
    if shutil.which("unshare") is None:
        return False
    return subprocess.run([*UNSHARE, "true"], capture_output=True).returncode == 0


needs_namespaces = pytest.mark.skipif(not may_unshare(), reason="needs unshare, and root")


@needs_namespaces
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_the_first_process_ends_by_a_signal(number):
    process = python(WAITS, *UNSHARE, stderr=subprocess.DEVNULL)
    assert process.stdout.readline() == "here\n"
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    os.kill(int(children[0]), number)
    process.communicate(timeout=20)
    assert process.returncode == 128 + number


@needs_namespaces
@pytest.mark.parametrize(("script", "code"), [(ENDS, 75), (ORPHAN, 0)])
def test_the_first_process_does_what_an_init_does(script, code):
    process = python(script, *UNSHARE)
    process.communicate(timeout=60)
    assert process.returncode == code


@pytest.mark.long
@pytest.mark.parametrize("stages", [1, 2])
def test_a_run_that_is_stopped_while_it_loads_torch(tmp_path, stages):
    """It saves after its first step; the launcher asks its ranks again and again."""
    settings = [f"run.dir={tmp_path / 'run'}", f"parallel.stages={stages}", "parallel.threads=1"]
    command = [sys.executable, "-m", "pipeline_local", "train", "configs/digits.yaml"]
    process = subprocess.Popen(
        [*command, *settings], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    told = process.stdout.readline()
    assert told == "train: loading torch\n"
    for _ in range(4):
        process.send_signal(signal.SIGUSR1)
        time.sleep(1)
    told, _ = process.communicate(timeout=120)
    assert process.returncode == EXIT_STOPPED, told
    assert "stopped by a signal after step 1," in told
