"""Several hosts, played by launchers on this one."""

import os
import signal
import socket
import subprocess
import sys
import threading
from datetime import timedelta
from pathlib import Path

import pytest
import torch

from pipeline_local.cli import main
from pipeline_local.configfile import configfile
from pipeline_local.errors import EXIT_STOPPED, UserError
from pipeline_local.ranks import hosts, launcher
from pipeline_local.ranks.hosts import Hosts, Meeting
from pipeline_local.ranks.rank import RankInfo
from pipeline_local.training.train import train
from tests.ports import free_port

ROOT = Path(__file__).parent.parent.parent


@pytest.fixture
def meet():
    """Two hosts at one place; each is told to set its event."""
    port, meetings = free_port(), []

    def made(*events):
        for number, event in enumerate(events):
            meetings.append(Meeting(Hosts(2, number, "localhost", port), event.set))
        return meetings

    yield made
    for meeting in reversed(meetings):
        meeting.leave()


@pytest.mark.parametrize(
    ("numbers", "says"),
    [
        ("0 0 1 29500 0", "NODES: expected a number of at least 1, got 0"),
        ("2 2 1 29500 0", "NODE: expected a number from 0 to 1, got 2"),
        ("two 0 1 29500 0", "NODES: expected a number of at least 1, got two"),
        ("2 0 0 29500 0", "RANKS_PER_NODE: expected a number of at least 1, got 0"),
        ("2 0 a 29500 0", "RANKS_PER_NODE: expected a number of at least 1, got a"),
        ("2 0 1 99999 0", "PORT: expected a number from 1 to 65535, got 99999"),
        ("2 0 1 29500 1.5", "RESTARTS: expected a number of at least 0, got 1.5"),
        ("2 0 1 29500 -1", "RESTARTS: expected a number of at least 0, got -1"),
    ],
)
def test_numbers_out_of_range_are_one_line(capsys, numbers, says):
    assert main(["hosts", *numbers.split(), "localhost", "train", "c.yaml"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert says in line


@pytest.mark.parametrize(("gpus", "ranks"), [(0, 1), (1, 1), (2, 2)])
def test_a_rank_for_each_gpu(monkeypatch, gpus, ranks):
    """That torch sees, whatever a broken driver prints, MIG divides or CUDA_VISIBLE_DEVICES hides;
    unless the user says another number."""
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: gpus > 0)
    monkeypatch.setattr(torch.accelerator, "device_count", lambda: gpus)
    started = []
    monkeypatch.setattr(launcher, "start_ranks", lambda count, *_: started.append(count) or 0)
    for wanted in ("", "3"):
        assert main(["hosts", "2", "1", wanted, "29500", "0", "localhost", "train", "c.yaml"]) == 0
    assert started == [ranks, 3]


def test_hosts_wait_for_each_other(meet):
    meetings = meet(threading.Event(), threading.Event())
    first = threading.Thread(target=meetings[0].wait, daemon=True)
    first.start()
    first.join(0.5)
    assert first.is_alive()
    meetings[1].wait()
    first.join(20)
    assert not first.is_alive()


def test_a_host_that_does_not_come_is_named(meet, monkeypatch):
    monkeypatch.setattr(hosts, "PATIENCE", timedelta(seconds=0.3))
    with pytest.raises(UserError, match=r"cannot meet at localhost:\d+ \(still missing .*: 1\)"):
        meet(threading.Event())[0].wait()


def test_a_stop_reaches_all_hosts(meet):
    heard = [threading.Event(), threading.Event()]
    meetings = meet(*heard)
    assert not heard[0].wait(0.2)
    meetings[1].stop_all()
    assert all(event.wait(20) for event in heard)


def test_who_leaves_stops_nobody(meet):
    heard = [threading.Event(), threading.Event()]
    for meeting in meet(*heard):
        meeting.leave()
    assert not any(event.is_set() for event in heard)


def test_a_taken_port_is_one_line():
    with socket.create_server(("", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(UserError, match=rf"localhost:{port} \(the port is taken\)") as told:
            Meeting(Hosts(2, 0, "localhost", port), threading.Event().set)
    assert "\n" not in str(told.value)


STEPS = 300
SETTINGS = (
    *("train.epochs=null", f"train.steps={STEPS}", "checkpoint.every_steps=5"),
    *("model.width=4", "parallel.threads=1"),
)


@pytest.fixture
def start(tmp_path):
    """The script of each of two hosts."""
    program = tmp_path / "bin" / "pipeline-local"
    program.parent.mkdir()
    program.write_text(f'#!/bin/sh\nexec {sys.executable} -m pipeline_local "$@"\n')
    program.chmod(0o755)
    path = f"{program.parent}:{os.environ['PATH']}"
    hosts = []

    def run(numbers=(0, 1), **env):
        port = str(free_port())
        for number in numbers:
            command = ["bash", ROOT / "launch" / "multinode.sh", str(number), "localhost"]
            with (tmp_path / f"host-{number}").open("w") as log:
                host = subprocess.Popen(
                    [*command, "configs/digits.yaml", f"run.dir={tmp_path / 'run'}", *SETTINGS],
                    cwd=ROOT,
                    env={**os.environ, "PATH": path, "PORT": port, "RANKS_PER_NODE": "1"} | env,
                    stdout=log,
                    stderr=subprocess.STDOUT,
                )
            hosts.append(host)
        return hosts

    yield run
    for host in hosts:
        host.kill()
        host.wait()


def under_way(folder):
    """Wait for the first checkpoints."""
    while not (folder / "run" / "checkpoints" / "step-00000010").is_dir():
        threading.Event().wait(0.1)


def says(tmp_path, number, text):
    """Wait until a host has said something."""
    while text not in (tmp_path / f"host-{number}").read_text():
        threading.Event().wait(0.05)


def test_a_stop_of_the_first_host_alone(start, tmp_path):
    (host,) = start(numbers=[0])
    says(tmp_path, 0, "waiting for 2 hosts at localhost:")
    host.send_signal(signal.SIGTERM)
    assert host.wait(60) == EXIT_STOPPED
    said = (tmp_path / "host-0").read_text()
    assert said.count("stopped before the ranks of all hosts had met") == 1
    assert "Traceback" not in said


@pytest.mark.long
@pytest.mark.parametrize("stopped", [0, 1])
def test_a_stop_before_the_ranks_have_met(start, tmp_path, stopped):
    """They still load torch, and those of the other host would wait for them."""
    hosts = start()
    says(tmp_path, stopped, "starting 1 rank")
    hosts[stopped].send_signal(signal.SIGTERM)
    assert [host.wait(60) for host in hosts] == [EXIT_STOPPED] * 2
    for number in range(2):
        said = (tmp_path / f"host-{number}").read_text()
        assert said.count("stopped before the ranks of all hosts had met") == 1
        assert "Traceback" not in said
        assert "frame #" not in said, "a stack of C++"
    assert not (tmp_path / "run").exists()


@pytest.mark.long
@pytest.mark.timeout(300)
@pytest.mark.parametrize("number", [signal.SIGUSR1, signal.SIGTERM, signal.SIGINT])
def test_a_stop_on_any_host_is_quiet(start, tmp_path, number):
    hosts = start()
    under_way(tmp_path)
    hosts[1].send_signal(number)
    assert [host.wait(60) for host in hosts] == [EXIT_STOPPED] * 2
    told = "".join((tmp_path / f"host-{number}").read_text() for number in range(2))
    assert told.count("stopped by a signal after step") == 1
    assert "Traceback" not in told
    assert "FAILED" not in told


@pytest.mark.long
@pytest.mark.timeout(400)
def test_ranks_start_again_on_all_hosts(start, tmp_path):
    """One is killed, and nobody has to do anything. The weights are those of an undisturbed run."""
    hosts = start(RESTARTS="1")
    under_way(tmp_path)
    children = Path(f"/proc/{hosts[1].pid}/task/{hosts[1].pid}/children").read_text().split()
    os.kill(int(children[0]), signal.SIGKILL)
    assert [host.wait(300) for host in hosts] == [0, 0]
    assert "resuming after step" in (tmp_path / "host-0").read_text()
    whole = [*SETTINGS, "parallel.stages=1", f"run.dir={tmp_path / 'whole'}"]
    train(configfile.load(ROOT / "configs" / "digits.yaml", whole), RankInfo())
    assert last_files(tmp_path / "run") == last_files(tmp_path / "whole")


def last_files(folder):
    files = folder.glob(f"checkpoints/step-{STEPS:08d}/*.safetensors")
    found = {path.name: path.read_bytes() for path in files}
    assert len(found) == 4
    return found
