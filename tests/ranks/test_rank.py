"""Ranks, threads, transports: read from the launcher, refused where they do not fit."""

import os

import pytest
import torch
import torch.distributed as dist

from pipeline_local.config import ParallelConfig
from pipeline_local.errors import UserError
from pipeline_local.ranks import rank as places
from pipeline_local.ranks.mesh import Mesh
from pipeline_local.ranks.p2p import common as common_kind
from pipeline_local.ranks.rank import RankInfo


def test_without_a_launcher_there_is_one_rank(monkeypatch):
    for name in ("RANK", "WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    assert RankInfo.from_environment() == RankInfo()
    assert RankInfo().mesh(ParallelConfig(stages=3)) == Mesh((1, 1, 1))


def test_torchruns_environment(monkeypatch):
    for name, value in {"RANK": 5, "WORLD_SIZE": 8, "LOCAL_RANK": 1, "LOCAL_WORLD_SIZE": 4}.items():
        monkeypatch.setenv(name, str(value))
    rank_info = RankInfo.from_environment()
    assert rank_info == RankInfo(5, 8, 1, 4, launched=True)
    assert rank_info.mesh(ParallelConfig()).num_stages == 8
    assert rank_info.mesh(ParallelConfig(stages=8)).num_ranks == 8
    assert rank_info.mesh(ParallelConfig(replicas=2)) == Mesh((2, 2, 2, 2))
    with pytest.raises(UserError, match=r"needs 4 ranks, but the launcher started 8; start 4 or"):
        rank_info.mesh(ParallelConfig(stages=4))


def test_deepspeeds_environment(monkeypatch):
    """It says LOCAL_SIZE; without it, half of a second host's GPUs would seem missing."""
    monkeypatch.delenv("LOCAL_WORLD_SIZE", raising=False)
    for name, value in {"RANK": 9, "WORLD_SIZE": 16, "LOCAL_RANK": 1, "LOCAL_SIZE": 8}.items():
        monkeypatch.setenv(name, str(value))
    assert RankInfo.from_environment() == RankInfo(9, 16, 1, 8, launched=True)


def test_torchrun_tells_of_restarts(monkeypatch):
    for name, value in {"RANK": 0, "WORLD_SIZE": 1, "TORCHELASTIC_RESTART_COUNT": 1}.items():
        monkeypatch.setenv(name, str(value))
    assert RankInfo.from_environment().restarted


def test_who_does_not_say_it_is_counted_by_host(monkeypatch):
    """Kubernetes' Indexed Job gives a rank and their number; here two are on each of two hosts."""
    for name in ("LOCAL_RANK", "LOCAL_WORLD_SIZE", "LOCAL_SIZE"):
        monkeypatch.delenv(name, raising=False)
    for name, value in {"RANK": 3, "WORLD_SIZE": 4}.items():
        monkeypatch.setenv(name, str(value))
    rank_info = RankInfo.from_environment()
    assert not rank_info.located
    store = dist.HashStore()
    hosts = dist.PrefixStore("pipeline_local hosts", store)
    for rank, host in enumerate(("pod-a", "pod-b", "pod-a")):
        hosts.set(str(rank), host)
    monkeypatch.setattr(places.socket, "gethostname", lambda: "pod-b")
    assert rank_info.on_host(store) == RankInfo(3, 4, 1, 2, launched=True)
    monkeypatch.setenv("LOCAL_RANK", "0")
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "1")
    said = RankInfo.from_environment()
    assert said.on_host(store) is said, "the launcher knows better"


@pytest.mark.parametrize(
    ("text", "node", "size"),
    [("4", 3, 4), ("2(x3),1", 0, 2), ("2(x3),1", 3, 1), ("1,3", 1, 3), ("8(x2)", 1, 8)],
)
def test_slurms_lists_of_tasks_per_node(monkeypatch, text, node, size):
    environment = {"RANK": 0, "WORLD_SIZE": 9, "LOCAL_RANK": 0, "SLURM_NODEID": node}
    for name, value in {**environment, "LOCAL_WORLD_SIZE": text}.items():
        monkeypatch.setenv(name, str(value))
    assert RankInfo.from_environment().local_world_size == size


@pytest.mark.parametrize("text", ["2(x", "two", "0", "1,2", "-1", "2(x0)"])
def test_other_lists_are_refused(monkeypatch, text):
    environment = {"RANK": 0, "WORLD_SIZE": 9, "LOCAL_RANK": 0, "SLURM_NODEID": 2}
    for name, value in {**environment, "LOCAL_WORLD_SIZE": text}.items():
        monkeypatch.setenv(name, str(value))
    with pytest.raises(UserError, match="LOCAL_WORLD_SIZE"):
        RankInfo.from_environment()


def test_all_ranks_use_one_kind_of_p2p():
    assert common_kind(["gloo", "gloo"]) == "gloo"
    assert common_kind(["nccl", "nccl"]) == "nccl"
    assert common_kind(["nccl", "staged", "nccl"]) == "staged"
    with pytest.raises(UserError, match="1 of 2 ranks see no GPU"):
        common_kind(["nccl", "gloo"])


@pytest.mark.parametrize("environment", [{"RANK": "0"}, {"RANK": "x", "WORLD_SIZE": "2"}])
def test_a_broken_environment_is_refused(monkeypatch, environment):
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(UserError, match="RANK and WORLD_SIZE"):
        RankInfo.from_environment()


def test_threads_share_the_cores(monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)))
    assert RankInfo(0, 3, 0, 3).threads(ParallelConfig()) == 2
    assert RankInfo(0, 99, 0, 99).threads(ParallelConfig()) == 1
    assert RankInfo(0, 3, 0, 3).threads(ParallelConfig(threads=5)) == 5
    assert "2 CPU threads each (8 cores" in RankInfo(0, 4, 0, 4).explain(ParallelConfig())


@pytest.mark.parametrize(
    ("load", "threads", "said"), [(6.0, None, True), (0.5, None, False), (6.0, 2, False)]
)
def test_a_busy_host_is_mentioned(monkeypatch, load, threads, said):
    """Threads that wait for each other then make small models several times slower."""
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)))
    monkeypatch.setattr(os, "cpu_count", lambda: 8)
    monkeypatch.setattr(os, "getloadavg", lambda: (load, 0.0, 0.0))
    pretend(monkeypatch, 0)
    line = RankInfo().explain(ParallelConfig(threads=threads))
    assert ("load 6.0 on 8 cores" in line and "parallel.threads=1" in line) == said
    assert "busy" not in RankInfo(0, 8, 0, 8).explain(ParallelConfig()), "one thread each"


def pretend(monkeypatch, gpus):
    """This host has so many GPUs."""
    found = torch.device("cuda") if gpus else None
    monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda check_available: found)
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: gpus > 0)
    monkeypatch.setattr(torch.accelerator, "device_count", lambda: gpus)


@pytest.mark.parametrize(
    ("gpus", "ranks", "backend", "kind"),
    [
        (0, 2, None, "gloo"),
        (0, 2, "gloo", "gloo"),
        (2, 2, None, "nccl"),
        (4, 2, "nccl", "nccl"),
        (2, 2, "gloo", "staged"),
        (1, 2, None, "staged"),
    ],
)
def test_p2p_kind(monkeypatch, gpus, ranks, backend, kind):
    pretend(monkeypatch, gpus)
    rank_info = RankInfo(ranks - 1, ranks, ranks - 1, ranks)
    assert rank_info.p2p_kind(ParallelConfig(backend=backend)) == kind
    assert rank_info.device.type == ("cuda" if gpus else "cpu")
    if gpus:
        assert rank_info.device.index == (ranks - 1) % gpus


@pytest.mark.parametrize("gpus", [0, 1])
def test_nccl_needs_a_gpu_per_rank(monkeypatch, gpus):
    pretend(monkeypatch, gpus)
    with pytest.raises(UserError, match=f"each of the 2 ranks of this host, got {gpus}"):
        RankInfo(0, 2, 0, 2).p2p_kind(ParallelConfig(backend="nccl"))
