"""The built-in launcher and others: nothing is left of a run in which a process dies or stops."""

import os
import re
import signal
import subprocess
import sys
import time
import uuid
from dataclasses import replace
from pathlib import Path

import pytest
from torch.distributed.elastic.multiprocessing.errors import ProcessFailure

from pipeline_local.configfile import configfile
from pipeline_local.errors import EXIT_NEIGHBOUR_LOST, EXIT_STALLED, EXIT_STOPPED, EXIT_USER_ERROR
from pipeline_local.ranks.launcher import cause
from pipeline_local.ranks.rank import RankInfo
from pipeline_local.training.train import train

BIN = Path(sys.executable).parent
ROOT = Path(__file__).parent.parent.parent
LONGEST = 90
"""Seconds; generous, as machines are noisy."""
MAIN = str(ROOT / "pipeline_local" / "__main__.py").encode()
KILLED, TERMINATED = -signal.SIGKILL, -signal.SIGTERM


@pytest.mark.parametrize(
    ("codes", "expected"),
    [
        ([EXIT_NEIGHBOUR_LOST, EXIT_USER_ERROR, TERMINATED], EXIT_USER_ERROR),
        ([EXIT_NEIGHBOUR_LOST, 1], 1),
        ([KILLED, EXIT_STALLED, EXIT_STALLED], EXIT_STALLED),
        ([EXIT_NEIGHBOUR_LOST, KILLED], 128 + signal.SIGKILL),
        ([TERMINATED, -signal.SIGSEGV], 128 + signal.SIGSEGV),
        ([EXIT_NEIGHBOUR_LOST, EXIT_NEIGHBOUR_LOST], EXIT_NEIGHBOUR_LOST),
        ([TERMINATED], 128 + signal.SIGTERM),
    ],
    ids=str,
)
def test_the_cause_is_told_by_the_exit_code(codes, expected, capsys):
    failures = {rank: ProcessFailure(rank, 0, code, "") for rank, code in enumerate(codes)}
    assert cause(failures) == expected
    told = capsys.readouterr().err
    ranks_told = {EXIT_NEIGHBOUR_LOST, EXIT_STALLED, EXIT_USER_ERROR, 1} & set(codes)
    assert (told == "") == bool(ranks_told), "exactly one line, from a rank or from the launcher"


def shared_memory():
    """Files of torch, multiprocessing and nccl; whatever else a busy machine has is not ours."""
    return {n for n in os.listdir("/dev/shm") if n.startswith(("torch_", "psm_", "sem.mp", "nccl"))}


class Run:
    """A run of the command line, and all processes that belong to it."""

    def __init__(self, folder, *more, launcher=()):
        self.folder = folder
        self.mark = f"PIPELINE_LOCAL_TEST={uuid.uuid4().hex}"
        name, _, value = self.mark.partition("=")
        environment = {k: v for k, v in os.environ.items() if not k.startswith("OMP_")}
        environment |= {name: value, "PYTHONPATH": str(ROOT)}
        module = {SCRIPT: (), DEEPSPEED: ("pipeline_local",)}.get(
            launcher, ("-m", "pipeline_local")
        )
        command = [
            *launcher,
            *module,
            "train",
            str(ROOT / "configs" / "digits.yaml"),
        ]
        small = ["train.epochs=null", "train.steps=1000000", "parallel.threads=1", "model.width=4"]
        self.errors = folder / "errors"
        self.shared_memory = shared_memory()
        with self.errors.open("w") as errors:
            self.process = subprocess.Popen(
                [
                    *command,
                    *small,
                    "parallel.stages=2",
                    "train.log_every=5",
                    *more,
                ],
                cwd=folder,
                env=environment,
                stdout=subprocess.DEVNULL,
                stderr=errors,
                start_new_session=True,
            )

    def processes(self):
        """{process number: rank, or None} of all that run."""
        found = {}
        for folder in Path("/proc").iterdir():
            try:
                environment = (folder / "environ").read_bytes().decode().split("\0")
                state = (folder / "stat").read_text().rpartition(")")[2].split()[0]
                command = (folder / "cmdline").read_bytes().split(b"\0")
            except (OSError, IndexError):
                continue
            if self.mark in environment and state not in "ZX":
                ranks = [e.removeprefix("RANK=") for e in environment if e.startswith("RANK=")]
                is_rank = {b"pipeline_local", MAIN} & {*command}
                found[int(folder.name)] = int(ranks[0]) if ranks and is_rank else None
        return found

    def rank(self, number):
        """Its process number, once it is well under way."""
        logged = self.folder / "runs" / "digits" / "metrics" / "stage-1.jsonl"
        until = time.monotonic() + LONGEST
        while not (logged.is_file() and logged.read_text().count("\n") >= 2):
            assert time.monotonic() < until, self.errors.read_text()
            assert self.process.poll() is None, self.errors.read_text()
            time.sleep(0.1)
        (process,) = [p for p, rank in self.processes().items() if rank == number]
        return process

    def told(self):
        """The lines that tell of an error."""
        lines = self.errors.read_text().splitlines()
        return [
            line for line in lines if re.match(r"(\[(stage \d+ \| )?rank \d+\] )?error: ", line)
        ]

    def leaves_nothing(self):
        """All its processes are gone, and so is their shared memory."""
        until = time.monotonic() + 20
        while left := [*self.processes(), *shared_memory() - self.shared_memory]:
            assert time.monotonic() < until, left
            time.sleep(0.1)

    def close(self):
        for process in self.processes():
            os.kill(process, signal.SIGKILL)
        self.process.wait()


OWN = (sys.executable,)
SCRIPT = (str(BIN / "pipeline-local"),)
TORCHRUN = (str(BIN / "torchrun"), "--nproc-per-node=2")
DEEPSPEED = (str(BIN / "deepspeed"), "--num_accelerators=2", "--module")


@pytest.fixture
def start(tmp_path):
    started = []

    def run(*more, launcher=OWN):
        started.append(Run(tmp_path, *more, launcher=launcher))
        return started[-1]

    yield run
    for one in started:
        one.close()


@pytest.mark.parametrize(
    ("launcher", "victim", "code"),
    [
        (OWN, 1, 128 + signal.SIGKILL),
        pytest.param(TORCHRUN, 0, 1, marks=pytest.mark.long),
    ],
)
def test_a_killed_rank(start, launcher, victim, code):
    run = start(launcher=launcher)
    os.kill(run.rank(victim), signal.SIGKILL)
    begin = time.monotonic()
    assert run.process.wait(LONGEST) == code
    assert time.monotonic() - begin < 20, "promised are 5 s"
    (line,) = run.told()
    assert line.startswith(f"[stage {victim} | rank {victim}] error: "), line
    run.leaves_nothing()


@pytest.mark.long
def test_a_stopped_rank(start):
    """Its launcher could only wait for it. See tests/test_failures.py for ranks without one."""
    run = start("parallel.timeout=4")
    os.kill(run.rank(0), signal.SIGSTOP)
    assert run.process.wait(LONGEST) == EXIT_STALLED
    (line,) = run.told()
    assert line.startswith("[stage 0 | rank 0] error: no "), line
    run.leaves_nothing()


def test_a_killed_launcher_takes_its_ranks_along(start):
    run = start("data.workers=1")
    run.rank(1)
    assert len(run.processes()) >= 4, "launcher, two ranks, a loader"
    run.process.kill()
    run.leaves_nothing()


@pytest.mark.parametrize(
    "number", [signal.SIGINT, pytest.param(signal.SIGTERM, marks=pytest.mark.long)]
)
def test_a_launcher_that_is_asked_to_stop(start, number):
    """Its ranks, with their loaders, finish the same step and save it."""
    run = start("data.workers=1")
    run.rank(1)
    run.process.send_signal(number)
    assert run.process.wait(LONGEST) == EXIT_STOPPED
    assert not run.told()
    *_, saved = sorted((run.folder / "runs" / "digits" / "checkpoints").iterdir())
    assert len(list(saved.glob("*.safetensors"))) == 4
    run.leaves_nothing()


@pytest.mark.long
@pytest.mark.parametrize("launcher", [OWN, TORCHRUN, DEEPSPEED])
def test_ctrl_c_in_a_terminal(start, launcher):
    """It goes to the launcher, its ranks and their loaders, and launchers pass it on. The front of
    deepspeed ends before its ranks."""
    run = start("data.workers=1", launcher=launcher)
    run.rank(1)
    os.killpg(run.process.pid, signal.SIGINT)
    run.process.wait(LONGEST)
    run.leaves_nothing()
    assert not run.told()
    *_, saved = sorted((run.folder / "runs" / "digits" / "checkpoints").iterdir())
    assert len(list(saved.glob("*.safetensors"))) == 4


@pytest.mark.long
def test_a_second_ctrl_c_kills_the_ranks(start):
    """One of them is suspended, and would never end its step."""
    run = start()
    os.kill(run.rank(0), signal.SIGSTOP)
    for _ in range(2):
        run.process.send_signal(signal.SIGINT)
        time.sleep(0.3)
    assert run.process.wait(LONGEST) == 128 + signal.SIGINT
    assert not run.told()
    run.leaves_nothing()


@pytest.mark.long
def test_signals_to_all_processes_stop_a_run_once(start):
    """As a batch system sends them: launcher, ranks and loaders all get it."""
    run = start("data.workers=1")
    run.rank(1)
    for process in run.processes():
        os.kill(process, signal.SIGUSR1)
    assert run.process.wait(LONGEST) == EXIT_STOPPED
    assert not run.told()
    run.leaves_nothing()


@pytest.mark.long
@pytest.mark.timeout(400)
def test_torchrun_restarts_and_resumes_by_itself(start, tmp_path):
    """A killed rank costs the steps since the last checkpoint, and nobody has to do anything."""
    settings = ["train.steps=300", "checkpoint.every_steps=5"]
    run = start(*settings, launcher=(*TORCHRUN, "--max-restarts=2"))
    os.kill(run.rank(1), signal.SIGKILL)
    assert run.process.wait(300) == 0, run.errors.read_text()
    (line,) = run.told()
    assert line.startswith("[stage 1 | rank 1] error: its process is gone"), line
    run.leaves_nothing()
    small = ["train.epochs=null", "parallel.threads=1", "model.width=4", "parallel.stages=1"]
    whole = tmp_path / "whole"
    config = configfile.load(ROOT / "configs" / "digits.yaml", [*small, *settings])
    train(replace(config, run=replace(config.run, dir=whole)), RankInfo())
    assert last_files(tmp_path / "runs" / "digits") == last_files(whole)


def last_files(folder):
    files = {p.name: p.read_bytes() for p in folder.glob("checkpoints/step-00000300/*")}
    assert len(files) == 4
    return files


SHADOWS = ("profile", "random", "queue", "copy", "socket", "numpy", "torch", "config", "yaml")
"""Modules that ranks, their fork server or torch import, some only when they are first needed."""


def test_scripts_beside_and_folders_left(start, tmp_path, monkeypatch):
    """Where a user keeps scripts named as a library's modules, and has a TMPDIR whose path is too
    long for a socket's address. The run ends by a mistake that comes up on one of its ranks."""
    for name in SHADOWS:
        (tmp_path / f"{name}.py").write_text("raise RuntimeError('not the library')")
    temporary = tmp_path / ("t" * 90)
    temporary.mkdir()
    monkeypatch.setenv("TMPDIR", str(temporary))
    run = start("optimizer.lr=1e9", launcher=SCRIPT)
    assert run.process.wait(LONGEST) == EXIT_USER_ERROR, run.errors.read_text()
    (line,) = run.told()
    assert "not finite" in line
    assert not list(temporary.iterdir())
    run.leaves_nothing()
