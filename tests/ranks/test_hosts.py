"""Several hosts, played by launchers on this one."""

import os
import signal
import socket
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from pipeline_local import configfile, trainer
from pipeline_local.errors import EXIT_STOPPED, UserError
from pipeline_local.ranks.hosts import Hosts
from pipeline_local.ranks.rank import RankInfo
from tests.ports import free_port

ROOT = Path(__file__).parent.parent.parent


def test_hosts_meet():
    port, stores = free_port(), []
    others = threading.Thread(target=lambda: stores.append(Hosts(2, 1, "localhost", port).meet()))
    others.start()
    own = Hosts(2, 0, "localhost", port).meet()
    own.set("from", "the first")
    others.join(20)
    assert stores[0].get("from") == b"the first"


def test_a_taken_port_is_one_line():
    with socket.create_server(("", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(UserError, match=rf"localhost:{port} \(the port is taken\)") as told:
            Hosts(2, 0, "localhost", port).meet()
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

    def run(**env):
        port = str(free_port())
        for number in range(2):
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
    trainer.train(configfile.load(ROOT / "configs" / "digits.yaml", whole), RankInfo())
    assert last_files(tmp_path / "run") == last_files(tmp_path / "whole")


def last_files(folder):
    files = folder.glob(f"checkpoints/step-{STEPS:08d}/*.safetensors")
    found = {path.name: path.read_bytes() for path in files}
    assert len(found) == 4
    return found
