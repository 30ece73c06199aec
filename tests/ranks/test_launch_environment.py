"""What srun says of a task is what torchrun says of a rank."""

import pytest

from pipeline_local.errors import UserError
from pipeline_local.ranks import environment
from pipeline_local.ranks.environment import first_host
from pipeline_local.ranks.rank import RankInfo

STEP = {
    "SLURM_JOB_ID": "1234",
    "SLURM_STEP_ID": "0",
    "SLURM_STEP_NUM_TASKS": "5",
    "SLURM_STEP_TASKS_PER_NODE": "2(x2),1",
    "SLURM_STEP_NODELIST": "n[07-09]",
    "SLURM_PROCID": "3",
    "SLURM_LOCALID": "1",
    "SLURM_NODEID": "1",
}
"""Of Slurm 22.05."""


@pytest.fixture
def step(monkeypatch):
    """The environment of the fourth of five tasks on three nodes."""
    for name in ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT", "SLURM_RESTART_COUNT"):
        monkeypatch.delenv(name, raising=False)
    for name, value in STEP.items():
        monkeypatch.setenv(name, value)
    return monkeypatch


def test_a_task_is_a_rank(step):
    assert RankInfo.from_environment() == RankInfo(3, 5, 1, 2, launched=True)
    assert environment.launcher_variables()["MASTER_ADDR"] == "n07"
    assert not environment.is_first()


def test_a_single_task_is_a_plain_run(step):
    """So is a shell that `salloc` or `srun --pty` gives."""
    step.setenv("SLURM_STEP_NUM_TASKS", "1")
    assert RankInfo.from_environment() == RankInfo()
    step.delenv("SLURM_STEP_NUM_TASKS")
    assert RankInfo.from_environment() == RankInfo()


def test_a_launcher_within_a_step_counts(step):
    """Such as torchrun, one task of which is on each node."""
    for name, value in {
        "RANK": 9,
        "WORLD_SIZE": 12,
        "LOCAL_RANK": 1,
        "LOCAL_WORLD_SIZE": 4,
    }.items():
        step.setenv(name, str(value))
    assert RankInfo.from_environment() == RankInfo(9, 12, 1, 4, launched=True)
    assert not environment.in_slurm_step()


def test_the_user_may_say_where_the_ranks_meet(step):
    step.setenv("MASTER_ADDR", "ib-n07")
    step.setenv("MASTER_PORT", "4444")
    said = environment.launcher_variables()
    assert (said["MASTER_ADDR"], said["MASTER_PORT"], said["RANK"]) == ("ib-n07", "4444", "3")


def test_jobs_and_steps_and_starts_have_ports_of_their_own(step):
    ports = set()
    for job in range(1234, 1334):
        for which, start in ((0, 0), (1, 0), (0, 1), (0, 2)):
            step.setenv("SLURM_JOB_ID", str(job))
            step.setenv("SLURM_STEP_ID", str(which))
            step.setenv("SLURM_RESTART_COUNT", str(start))
            ports.add(int(environment.launcher_variables()["MASTER_PORT"]))
    assert len(ports) == 400
    assert 1024 < min(ports) < max(ports) < 32768, "others may be in use by any connection"


@pytest.mark.parametrize("name", ["SLURM_PROCID", "SLURM_STEP_NODELIST", "SLURM_LOCALID"])
def test_what_is_missing_is_named(step, name):
    step.delenv(name)
    with pytest.raises(UserError, match=f"its environment is incomplete, got '{name}'"):
        RankInfo.from_environment()


@pytest.mark.parametrize(
    ("nodes", "first"),
    [
        ("n1", "n1"),
        ("n[1-2]", "n1"),
        ("n[07-09,12],m1", "n07"),
        ("a1,b[1-3]", "a1"),
        ("rack[2,4]n[01-03]", "rack2n01"),
        ("gpu-3.cluster,gpu-4.cluster", "gpu-3.cluster"),
    ],
)
def test_the_first_host_of_a_list(nodes, first):
    assert first_host(nodes) == first


def test_ranks_share_the_cores_of_the_step(step):
    """Whether Slurm has bound each to cores of its own or not."""
    step.setattr(environment.os, "sched_getaffinity", lambda _: {0, 1})
    step.setenv("SLURM_CPUS_ON_NODE", "8")
    assert environment.cores() == 8
    step.setenv("SLURM_STEP_NUM_TASKS", "1")
    assert environment.cores() == 2
