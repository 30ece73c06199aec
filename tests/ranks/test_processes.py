"""Only a process of this very identity is killed, and only one that cannot end itself."""

import os
import signal
import subprocess
import sys
import time

import pytest

from pipeline_local.ranks import processes


@pytest.fixture
def sleeper():
    """A process and its identity, which it tells itself."""
    code = (
        "import json, time; from pipeline_local.ranks.processes import identity;"
        "print(json.dumps(identity()), flush=True); time.sleep(60)"
    )
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE) as process:
        import json

        yield process, json.loads(process.stdout.readline())
        process.kill()


def stop(process):
    os.kill(process.pid, signal.SIGSTOP)
    until = time.monotonic() + 20
    while processes._stat(process.pid)[0] not in processes._STOPPED:
        assert time.monotonic() < until
        time.sleep(0.01)


def test_a_stopped_process_is_killed(sleeper):
    process, identity = sleeper
    stop(process)
    processes.kill_stopped(identity, silent=False)
    assert process.wait(20) == -signal.SIGKILL


def test_a_silent_one_too(sleeper):
    process, identity = sleeper
    processes.kill_stopped(identity, silent=True)
    assert process.wait(20) == -signal.SIGKILL


@pytest.mark.parametrize("change", [{"born": "1"}, {"host": "elsewhere"}, {"born": ""}])
def test_others_are_left_alone(sleeper, change):
    process, identity = sleeper
    stop(process)
    processes.kill_stopped({**identity, **change}, silent=True)
    processes.kill_stopped({}, silent=True)
    time.sleep(0.2)
    assert process.poll() is None


def test_one_that_works_is_left_alone(sleeper):
    process, identity = sleeper
    processes.kill_stopped(identity, silent=False)
    time.sleep(0.2)
    assert process.poll() is None


def test_one_that_ends_meanwhile_is_no_error(sleeper, monkeypatch):
    """Between the look at it and the signal; its parent has seen its end already."""
    process, identity = sleeper
    stat = processes._stat

    def seen_for_the_last_time(pid):
        seen = stat(pid)
        process.kill()
        process.wait()
        return seen

    monkeypatch.setattr(processes, "_stat", seen_for_the_last_time)
    processes.kill_stopped(identity, silent=True)
    assert process.returncode == -signal.SIGKILL, "by the test: it was gone before the signal"


def test_one_of_another_user_is_no_error(sleeper, monkeypatch):
    process, identity = sleeper

    def refuse(*_):
        raise PermissionError(1, "Operation not permitted")

    with monkeypatch.context() as patched:
        patched.setattr(os, "kill", refuse)
        processes.kill_stopped(identity, silent=True)
    assert process.poll() is None
