"""Runs on several hosts, each with a network and a name of its own: all launchers, a cut link.

Whatever ends a run, it goes on to the weights of one process that nothing has ended.
"""

import os
import re
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest

from pipeline_local.configfile import configfile
from pipeline_local.errors import EXIT_NEIGHBOUR_LOST, EXIT_STOPPED
from pipeline_local.ranks.rank import RankInfo
from pipeline_local.training.train import train
from tests.launch.virtual_hosts import VirtualHosts, lacks

ROOT = Path(__file__).parent.parent.parent
DIGITS = ROOT / "configs" / "digits.yaml"
STEPS = 300
SMALL = ("train.epochs=null", f"train.steps={STEPS}", "model.width=4", "parallel.threads=1")
SAVES = ("checkpoint.every_steps=20", "train.log_every=10")
LONGEST = 300
"""Seconds until a run must be where it is awaited; generous, as machines are noisy."""

pytestmark = [pytest.mark.long, pytest.mark.timeout(900)]


@pytest.fixture
def make(tmp_path):
    """Makes hosts, and removes them again."""
    if lacks():
        pytest.skip(f"virtual hosts need {lacks()} (apt-get install iproute2 util-linux)")
    made = []

    def hosts(count: int, setup: str = "") -> VirtualHosts:
        made.append(VirtualHosts(tmp_path, count, setup))
        return made[-1]

    yield hosts
    for each in made:
        each.close()


@pytest.fixture
def variables(tmp_path):
    """The environment of a user who has installed the package."""
    program = tmp_path / "bin" / "pipeline-local"
    program.parent.mkdir()
    program.write_text(f'#!/bin/sh\nexec {sys.executable} -m pipeline_local "$@"\n')
    program.chmod(0o755)
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("SLURM", "COV_", "GLOO_"))}
    path = f"{program.parent}:{Path(sys.executable).parent}:{os.environ['PATH']}"
    return kept | {"PATH": path, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    """The weights of a run in one process."""
    config = configfile.load(DIGITS, [*SMALL, "parallel.stages=1"])
    folder = tmp_path_factory.mktemp("uninterrupted") / "run"
    train(replace(config, run=replace(config.run, dir=folder)), RankInfo())
    return weights(folder)


def weights(run):
    files = run.glob(f"checkpoints/step-{STEPS:08d}/*.safetensors")
    found = {path.name: path.read_bytes() for path in files}
    assert len(found) == 4
    return found


def training(count, *more):
    """The run in the folder `run`, as all hosts see it."""
    return ["train", DIGITS, *SMALL, *SAVES, "run.dir=run", f"parallel.stages={count}", *more]


def torchrun(host, count, head, *more):
    meet = ["--node-rank", host, "--master-addr", head, "--master-port", 29500]
    return _torchrun(meet, count, *more)


def torchrun_c10d(host, count, head, *more):
    meet = ["--rdzv-backend", "c10d", "--rdzv-endpoint", f"{head}:29500"]
    return _torchrun(meet, count, *more)


def _torchrun(meet, count, *more):
    ranks = ["--nnodes", count, "--nproc-per-node", 1]
    return ["torchrun", *ranks, *meet, "-m", "pipeline_local", *training(count, *more)]


def multinode(host, count, head, *more):
    _, *settings = training(count, *more)
    return ["bash", ROOT / "launch" / "multinode.sh", host, head, *settings]


class Run:
    """One command on all hosts."""

    def __init__(self, hosts, launcher, count, variables, *more, head="host-0", **env):
        env = variables | {"NODES": str(count), "RANKS_PER_NODE": "1"} | env
        self.programs = [
            hosts.start(n, *launcher(n, count, head, *more), log=f"log-{n}", **env)
            for n in range(count)
        ]

    @property
    def logs(self):
        return [program.log for program in self.programs]

    def ends(self):
        return [program.ends(LONGEST) for program in self.programs]


def wait_for(true):
    until = time.monotonic() + LONGEST
    while not true():
        assert time.monotonic() < until
        time.sleep(0.1)


def under_way(folder):
    """Wait for the first checkpoints."""
    wait_for((folder / "run" / "checkpoints" / "step-00000040").is_dir)


def await_text(program, text):
    wait_for(lambda: text in program.log)


@pytest.mark.parametrize("count", [2, 3])
@pytest.mark.parametrize("launcher", [torchrun, torchrun_c10d, multinode])
def test_launchers(launcher, count, make, variables, tmp_path, uninterrupted):
    run = Run(make(count), launcher, count, variables)
    assert run.ends() == [0] * count, run.logs
    assert f"{count} stages on cpu over gloo" in run.logs[0]
    assert weights(tmp_path / "run") == uninterrupted


SSHD_CONFIG = """
HostKey /etc/ssh/host_key
AuthorizedKeysFile /etc/ssh/key.pub
PermitRootLogin prohibit-password
StrictModes no
UsePAM no
"""
SSH_CONFIG = """
IdentityFile /etc/ssh/key
StrictHostKeyChecking no
UserKnownHostsFile /dev/null
LogLevel ERROR
ServerAliveInterval 5
ServerAliveCountMax 2
"""
"""Without the last two ssh, and the launcher with it, waits for ever behind a cut link."""


@pytest.fixture
def sshd(tmp_path):
    """What starts a server on a host that lets anybody in who has the key, as all hosts have."""
    if missing := lacks("sshd", "ssh", "ssh-keygen", "pdsh"):
        pytest.skip(f"needs {missing} (apt-get install openssh-server pdsh)")
    folder = tmp_path / "ssh"
    folder.mkdir()
    for name in ("key", "host_key"):
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", folder / name])
    (folder / "sshd_config").write_text(SSHD_CONFIG)
    (folder / "ssh_config").write_text(SSH_CONFIG)
    return f"""
        mount --bind {folder} /etc/ssh
        mount -t tmpfs none /run
        mkdir /run/sshd
        {shutil.which("sshd")}"""


def deepspeed(hosts, folder, variables, *more):
    (folder / "hostfile").write_text("host-0 slots=1\nhost-1 slots=1\n")
    start = ["deepspeed", "--hostfile", "hostfile", "--module", "pipeline_local"]
    return hosts.start(0, *start, *training(2, *more), log="log", **variables)


def test_deepspeed(sshd, make, variables, tmp_path, uninterrupted):
    """Its launcher starts all hosts from the first one, by pdsh."""
    launcher = deepspeed(make(2, sshd), tmp_path, variables)
    assert launcher.ends(LONGEST) == 0, launcher.log
    assert "2 stages on cpu over gloo" in launcher.log
    assert weights(tmp_path / "run") == uninterrupted


def test_a_link_is_cut_under_deepspeed(sshd, make, variables, tmp_path, uninterrupted):
    """Rank 0 says so; its launcher ends as soon as ssh has given up the other host."""
    hosts = make(2, sshd)
    launcher = deepspeed(hosts, tmp_path, variables)
    under_way(tmp_path)
    hosts.cable(1, "down")
    assert launcher.ends(LONGEST) != 0, launcher.log
    assert re.search(rf"^host-0: \[stage 1 \| rank 1\] error: {LOST}", launcher.log, re.M)
    hosts.cable(1, "up")
    launcher = deepspeed(hosts, tmp_path, variables, "run.resume=true")
    assert launcher.ends(LONGEST) == 0, launcher.log
    assert "resuming after step" in launcher.log
    assert weights(tmp_path / "run") == uninterrupted


KILLED = -signal.SIGKILL


@pytest.mark.parametrize(
    ("launcher", "count", "codes"),
    [
        (multinode, 2, [EXIT_NEIGHBOUR_LOST] * 2),
        (multinode, 3, [EXIT_NEIGHBOUR_LOST] * 3),
        (torchrun, 2, [1, 1]),
        (torchrun_c10d, 2, [1, KILLED]),  # it waits for the other side: docs/reliability.md
    ],
)
def test_a_link_is_cut(launcher, count, codes, make, variables, tmp_path, uninterrupted):
    """That of the last host, in mid-run. Both sides say so and end; then the run goes on."""
    hosts = make(count)
    run = Run(hosts, launcher, count, variables)
    under_way(tmp_path)
    hosts.cable(count - 1, "down")
    if codes[-1] == KILLED:
        await_text(run.programs[-1], "error:")
        run.programs[-1].signal(signal.SIGKILL)
    assert run.ends() == codes, run.logs
    told = [re.findall(rf"^\[stage (\d).*error: {LOST}.*", log, re.M) for log in run.logs]
    assert told.pop() == ["0"], run.logs
    assert [stage for stages in told for stage in stages] == [str(count - 1)], run.logs
    hosts.cable(count - 1, "up")
    run = Run(hosts, launcher, count, variables, "run.resume=true")
    assert run.ends() == [0] * count, run.logs
    assert "resuming after step" in run.logs[0]
    assert weights(tmp_path / "run") == uninterrupted


LOST = re.escape(
    "its process is gone (killed or crashed), or its host or the network to it is; last seen "
)

DEAD_END = """
    ip link add eth1 type veth peer name nowhere
    ip address add 10.9.0.$((n + 1))/24 dev eth1
    ip link set eth1 up
    ip link set nowhere up
"""
NAMES = {
    "of another network": "s/^10.0.0/10.9.0/",
    "of the loopback interface": "s/.* host-'$n'$/127.0.1.1 host-'$n'/",  # as on Debian
}


@pytest.mark.parametrize("names", NAMES)
def test_a_second_interface(names, make, variables, tmp_path, uninterrupted):
    """It leads nowhere. Gloo does not take it, and not what the host's own name leads to."""
    file = f"{tmp_path}/hosts-$n"
    own_names = f"sed '{NAMES[names]}' /etc/hosts >{file}\nmount --bind {file} /etc/hosts"
    hosts = make(2, f"{DEAD_END}\n{own_names}")
    run = Run(hosts, multinode, 2, variables, head="10.0.0.1")
    assert run.ends() == [0, 0], run.logs
    assert weights(tmp_path / "run") == uninterrupted


def test_a_stop_before_all_hosts_are_there(make, variables, tmp_path):
    hosts = make(2)
    first = hosts.start(0, *multinode(0, 2, "host-0"), log="log", **variables)
    await_text(first, "waiting for 2 hosts")
    first.signal(signal.SIGTERM)
    assert first.ends(20) == EXIT_STOPPED, first.log
    assert "stopped before the ranks of all hosts had met" in first.log
    assert not (tmp_path / "run").exists()
