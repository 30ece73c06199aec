"""The shipped batch script, and the page's commands, on a real Slurm of two virtual nodes.

Whatever ends a run, it goes on to the weights of one that nothing has ended.
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
from pipeline_local.errors import EXIT_STOPPED
from pipeline_local.ranks.rank import RankInfo
from pipeline_local.training.train import train

ROOT = Path(__file__).parent.parent.parent
PAGE = ROOT / "docs" / "how-to" / "slurm.md"
SETUP = Path(__file__).with_name("virtual_slurm.sh")
NEEDED = ("slurmctld", "slurmd", "munged", "ip", "unshare", "nsenter")
STEPS = 600
SMALL = ("train.epochs=null", f"train.steps={STEPS}", "model.width=4", "parallel.threads=1")
SAVES = ("checkpoint.every_steps=20", "train.log_every=10")
LONGEST = 400
"""Seconds until a job must be where it is awaited; generous, as machines are noisy."""

pytestmark = [pytest.mark.long, pytest.mark.timeout(1800)]


class Cluster:
    """Slurm, two nodes of their own host names and networks, and a clone of what is shipped."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.home = folder / "slurm"
        shutil.copytree(ROOT / "launch", folder / "clone" / "launch")
        shutil.copytree(ROOT / "configs", folder / "configs")
        program = folder / "clone" / ".venv" / "bin" / "pipeline-local"  # the only one
        program.parent.mkdir(parents=True)
        program.write_text(f'#!/bin/sh\nexec {sys.executable} -m pipeline_local "$@"\n')
        program.chmod(0o755)
        path = [p for p in os.environ["PATH"].split(":") if not Path(p, program.name).exists()]
        self.environment = {
            **{k: v for k, v in os.environ.items() if not k.startswith(("SLURM", "COV_"))},
            "PATH": ":".join(path),
            "PYTHONPATH": str(ROOT),
            "OMP_NUM_THREADS": "1",
            "SUBNET": "10.78.0",
            "GPUS": "2",
            "SLURM_CONF": str(self.home / "slurm.conf"),
        }

    def run(self, *command: object, **more: str) -> str:
        done = subprocess.run(
            [str(word) for word in command],
            env=self.environment | more,
            cwd=self.folder,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=LONGEST,
        )
        assert done.returncode == 0, f"{command}: {done.stdout}{done.stderr}"
        return done.stdout

    def setup(self, *action: object) -> None:
        self.run("bash", SETUP, self.home, *action)

    def submit(self, run: str, *options: str, more: tuple[str, ...] = (), **env: str) -> "Job":
        """Train in the folder `run`; from a folder that is not the clone."""
        script = self.folder / "clone" / "launch" / "slurm" / "train.sbatch"
        config = ROOT / "configs" / "digits.yaml"
        return self._sbatch(run, *options, script, config, *more, **env)

    def submit_own(
        self, program: str, run: str, *options: str, more: tuple[str, ...] = ()
    ) -> "Job":
        """Train by a script that has nothing but the page's step of this program."""
        script = self.folder / f"{program}.sbatch"
        script.write_text(f"#!/usr/bin/env bash\n{page_step(program)}\n")
        options = ("--output=pipeline-local-%j.log", *options)
        return self._sbatch(run, *options, script, *more, PATH=self.activated)

    @property
    def activated(self) -> str:
        """PATH with the environment's programs."""
        return f"{Path(sys.executable).parent}:{self.environment['PATH']}"

    def _sbatch(self, run: str, *words: object, **env: str) -> "Job":
        settings = [*SMALL, *SAVES, f"run.dir={self.folder / run}"]
        output = self.run("sbatch", "--parsable", *words, *settings, **env)
        return Job(self, int(output), self.folder / run)


class Job:
    """A job, and the run that it trains."""

    def __init__(self, cluster: Cluster, number: int, run: Path) -> None:
        self.cluster, self.number, self.folder = cluster, number, run
        self.log_file = cluster.folder / f"pipeline-local-{number}.log"

    def facts(self) -> dict[str, str]:
        text = self.cluster.run("scontrol", "show", "job", "--oneliner", self.number)
        return dict(re.findall(r"(\w+)=(\S*)", text))

    @property
    def log(self) -> str:
        return self.log_file.read_text() if self.log_file.is_file() else ""

    @property
    def steps(self) -> list[int]:
        """Of which there are checkpoints."""
        found = self.folder.glob("checkpoints/step-????????")
        return sorted(int(path.name[5:]) for path in found)

    def reaches(self, *states: str, at_least: int = 0) -> dict[str, str]:
        """Wait until it is in one of these states, and has saved so many steps.

        Nobody waits for the minutes that Slurm gives a job that goes back to the queue.
        """
        until = time.monotonic() + LONGEST
        while True:
            facts = self.facts()
            if facts["JobState"] in states and (self.steps or [0])[-1] >= at_least:
                return facts
            assert time.monotonic() < until, f"{facts}\n{self.log}"
            if facts["JobState"] == "PENDING" and facts["Reason"] == "BeginTime":
                time.sleep(3)  # at once, it would fail: "Job credential revoked"
                self.cluster.run("scontrol", "update", f"JobId={self.number}", "StartTime=now")
            time.sleep(0.5)

    def ends(self) -> dict[str, str]:
        return self.reaches("COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL")

    def completes(self) -> dict[str, str]:
        facts = self.ends()
        assert (facts["JobState"], facts["ExitCode"]) == ("COMPLETED", "0:0"), self.log
        assert "Traceback" not in self.log
        assert "frame #" not in self.log, "a stack of C++"
        return facts

    def ranks(self) -> list[int]:
        """The processes of its ranks, as the machine that holds all nodes numbers them."""
        name = f"SLURM_JOB_ID={self.number}".encode()
        found = []
        for folder in Path("/proc").iterdir():
            try:
                environment = (folder / "environ").read_bytes().split(b"\0")
                command = (folder / "cmdline").read_bytes().split(b"\0")
            except OSError:
                continue
            if name in environment and b"pipeline_local" in command:
                found.append(int(folder.name))
        return found

    def weights(self) -> dict[str, bytes]:
        return weights(self.folder)


def weights(folder: Path) -> dict[str, bytes]:
    files = folder.glob(f"checkpoints/step-{STEPS:08d}/*.safetensors")
    found = {path.name: path.read_bytes() for path in files}
    assert len(found) == 4
    return found


def page_step(program: str) -> str:
    """The page's command by which `srun` starts this program, word by word, and settings."""
    (step,) = re.findall(rf"^srun [^`]*?\b{program} [^`]*(?=\n```)", PAGE.read_text(), re.M)
    return f'{step} "$@"'


def lacks() -> str:
    """What a virtual cluster needs and this machine has not."""
    if os.geteuid() != 0:
        return "root"
    return ", ".join(name for name in NEEDED if shutil.which(name) is None)


@pytest.fixture(scope="module")
def cluster(tmp_path_factory):
    if lacks():
        pytest.skip(f"a virtual Slurm needs {lacks()} (apt-get install slurm-wlm munge iproute2)")
    cluster = Cluster(tmp_path_factory.mktemp("cluster"))
    try:
        cluster.setup()
        yield cluster
    finally:
        cluster.setup("stop")


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    """The weights of a run in one process."""
    config = configfile.load(ROOT / "configs" / "digits.yaml", [*SMALL, "parallel.stages=1"])
    folder = tmp_path_factory.mktemp("uninterrupted") / "run"
    train(replace(config, run=replace(config.run, dir=folder)), RankInfo())
    return weights(folder)


TWO = ("--nodes=2",)


def test_a_time_limit(cluster, uninterrupted):
    """Each start is asked to stop 15 s after it has begun."""
    job = cluster.submit("limit", *TWO, "--time=1", "--signal=B:USR1@45")
    facts = job.completes()
    assert int(facts["Restarts"]) >= 1, job.log
    stops = job.log.count("stopped by a signal after step")
    assert (
        stops == int(facts["Restarts"]) == job.log.count("back to the queue: it has saved itself")
    )
    assert job.weights() == uninterrupted


@pytest.mark.parametrize("seconds", [0.0, 1.0, 2.0])
def test_a_stop_in_the_first_seconds(cluster, uninterrupted, seconds):
    """Before Python, while torch is loaded: it is heard, and one step is done."""
    job = cluster.submit(f"early-{seconds}", *TWO)
    job.reaches("RUNNING")
    time.sleep(seconds)
    cluster.run("scancel", "--batch", "--signal=USR1", job.number)
    facts = job.completes()
    assert facts["Restarts"] == "1"
    assert job.log.count("stopped by a signal after step") == 1, job.log
    assert job.weights() == uninterrupted


def test_scancel(cluster, uninterrupted):
    """The run saves itself, nothing goes back to the queue, and another job goes on."""
    job = cluster.submit("cancelled", *TWO)
    job.reaches("RUNNING", at_least=40)
    cluster.run("scancel", job.number)
    facts = job.ends()
    assert facts["JobState"] == "CANCELLED"
    assert "stopped by a signal after step" in job.log
    job = cluster.submit("cancelled", *TWO, more=("run.resume=true",))
    assert job.completes()["Restarts"] == "0"
    assert job.weights() == uninterrupted


def test_requeue_by_hand(cluster, uninterrupted):
    job = cluster.submit("by-hand", *TWO)
    job.reaches("RUNNING", at_least=40)
    cluster.run("scontrol", "requeue", job.number)
    assert job.completes()["Restarts"] == "1"
    assert "resuming after step" in job.log
    assert job.weights() == uninterrupted


def test_a_killed_rank(cluster, uninterrupted):
    job = cluster.submit("killed", *TWO)
    job.reaches("RUNNING", at_least=40)
    os.kill(job.ranks()[0], signal.SIGKILL)
    assert job.completes()["Restarts"] == "1"
    assert "goes back to the queue: failure 1 (signal 9 to a rank)" in job.log
    assert job.weights() == uninterrupted


def test_failures_have_a_bound(cluster):
    job = cluster.submit("bound", *TWO, RESTARTS="1")
    for restart in range(2):
        facts = job.reaches("RUNNING", at_least=40 * (restart + 1))
        assert facts["Restarts"] == str(restart)
        os.kill(job.ranks()[0], signal.SIGKILL)
        if restart == 0:
            job.reaches("PENDING")
    facts = job.ends()
    assert (facts["JobState"], facts["ExitCode"]) == ("FAILED", "137:0")
    line = f"failure 2 (signal 9 to a rank): job {job.number} is not started again (RESTARTS=1)"
    assert line in job.log


def test_a_mistake_is_not_tried_again(cluster):
    job = cluster.submit("mistake", *TWO, more=("optimizer.lr=fast",))
    facts = job.ends()
    assert (facts["JobState"], facts["ExitCode"], facts["Restarts"]) == ("FAILED", "2:0", "0")
    assert job.log.count("error: optimizer.lr: should be a number") == 2, "once on each host"


def test_a_node_lost(cluster, uninterrupted):
    job = cluster.submit("lost", *TWO)
    job.reaches("RUNNING", at_least=40)
    node = int((cluster.home / "n2" / "init.pid").read_text())
    os.kill(node, signal.SIGKILL)
    job.reaches("PENDING")
    cluster.setup("node", 2)
    assert int(job.completes()["Restarts"]) >= 1
    assert job.weights() == uninterrupted


def test_two_jobs_on_a_node_and_gpus(cluster, uninterrupted):
    """One has a rank for each task, the other one for each GPU that Slurm says there is."""
    jobs = [
        cluster.submit("tasks", "--nodelist=n1", "--ntasks-per-node=2"),
        cluster.submit("gpus", "--nodelist=n1", "--gpus-per-node=2"),
    ]
    for job in jobs:
        job.completes()
        assert "2 stages on cpu over gloo" in job.log
        assert job.weights() == uninterrupted


def test_one_task_starts_its_ranks_itself(cluster, uninterrupted):
    """And a stop that comes early is passed on to them."""
    job = cluster.submit("one", more=("parallel.stages=2",))
    job.reaches("RUNNING")
    time.sleep(1)
    cluster.run("scancel", "--batch", "--signal=USR1", job.number)
    assert job.completes()["Restarts"] == "1"
    assert job.weights() == uninterrupted


def test_an_array(cluster):
    """Each task has a folder and a seed of its own."""
    more = ("train.seed=${env:SLURM_ARRAY_TASK_ID}", "train.steps=40")
    first = cluster.submit("array-${env:SLURM_ARRAY_TASK_ID}", "--array=3,4", more=more)
    assert first.completes()
    until = time.monotonic() + LONGEST
    while "array" in cluster.run("squeue") or not all(
        (cluster.folder / f"array-{task}" / "summary.json").is_file() for task in (3, 4)
    ):
        assert time.monotonic() < until, cluster.run("squeue")
        time.sleep(0.5)
    for task in (3, 4):
        seed = configfile.load(cluster.folder / f"array-{task}" / "config.yaml").train.seed
        assert seed == task


def test_a_step_from_a_shell(cluster, uninterrupted):
    step = ["bash", "-c", page_step("pipeline-local"), "bash", *SMALL, *SAVES]
    folder = cluster.folder / "shell"
    log = cluster.run(*step, f"run.dir={folder}", PATH=cluster.activated)
    assert "4 stages on cpu over gloo" in log
    assert weights(folder) == uninterrupted


OWN = {"pipeline-local": (*TWO, "--ntasks=4"), "torchrun": TWO}
"""Programs whose step the page shows, and what a job asks for."""


@pytest.mark.parametrize("program", OWN)
def test_a_script_of_ones_own(program, cluster, uninterrupted):
    """The same script goes on after a stop, by the signal that a time limit sends, too."""
    job = cluster.submit_own(program, f"own-{program}", *OWN[program])
    job.reaches("RUNNING", at_least=40)
    cluster.run("scancel", "--signal=TERM", job.number)
    facts = job.ends()
    code = {"pipeline-local": EXIT_STOPPED, "torchrun": 1}[program]
    assert (facts["JobState"], facts["ExitCode"]) == ("FAILED", f"{code}:0"), job.log
    assert job.log.count("stopped by a signal after step") == 1, job.log
    job = cluster.submit_own(program, f"own-{program}", *OWN[program], more=("run.resume=true",))
    job.completes()
    assert "resuming after step" in job.log
    assert job.weights() == uninterrupted


@pytest.mark.parametrize("options", [TWO, ("--nodes=1", "--gpus-per-node=2")])
def test_torchrun(options, cluster, uninterrupted):
    """One on each node starts a rank, or one for each GPU that Slurm says there is."""
    job = cluster.submit_own("torchrun", f"torchrun{options[0]}", *options)
    job.completes()
    assert "2 stages on cpu over gloo" in job.log
    assert job.weights() == uninterrupted
