"""The ranks meet, each way that they may be started, and no other program is taken for one."""

import socket
import threading
import time
from datetime import timedelta

import pytest
import torch
import torch.distributed as dist

from pipeline_local.config import ParallelConfig
from pipeline_local.configfile import configfile
from pipeline_local.errors import NeighbourLostError, UserError
from pipeline_local.pipeline.connect import WatchedP2P
from pipeline_local.ranks import join
from pipeline_local.ranks.join import ABORT_SECONDS, connecting, joined
from pipeline_local.ranks.rank import RankInfo
from pipeline_local.record.folder import RunFolder
from pipeline_local.training.train import train
from tests.apart import apart
from tests.chain import open_chain
from tests.ports import free_port
from tests.ranks.test_rank import pretend


def backend_of_hosts_with_a_gpu(rank_info, located):
    asked = []
    with pytest.MonkeyPatch.context() as patched:
        pretend(patched, 1)
        patched.setattr(dist, "init_process_group", lambda backend, **_: asked.append(backend))
        patched.setattr(dist, "destroy_process_group", lambda: None)
        with joined(rank_info if located else apart(rank_info), ParallelConfig()) as store:
            store.set(str(rank_info.rank), "joined")
            if rank_info.rank == 0:  # it serves the store, and no group makes it wait for the other
                store.wait(["1"])
            return asked


@pytest.mark.parametrize(("located", "backend"), [(True, "gloo"), (False, "cpu:gloo,cuda:nccl")])
def test_the_group_of_all_ranks_knows_which_of_them_share_a_host(run_ranks, located, backend):
    """Two ranks that share a GPU go through the host, those with one on each of two hosts not."""
    assert run_ranks(backend_of_hosts_with_a_gpu, 2, located) == [[backend]] * 2


def as_tasks(rank_info, port):
    """The same ranks, as srun starts them."""
    import os

    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_PORT"):
        del os.environ[name]
    os.environ.update(
        SLURM_PROCID=str(rank_info.rank),
        SLURM_STEP_NUM_TASKS=str(rank_info.world_size),
        SLURM_LOCALID=str(rank_info.rank),
        SLURM_STEP_TASKS_PER_NODE=str(rank_info.world_size),
        SLURM_STEP_NODELIST="localhost",
        MASTER_PORT=str(port),
    )
    own = RankInfo.from_environment()
    assert own == rank_info
    with joined(own) as store:
        store.set(str(own.rank), "here")
        return [store.get(str(rank)) for rank in range(own.world_size)]


def test_tasks_of_srun_meet(run_ranks):
    assert run_ranks(as_tasks, 3, free_port()) == [[b"here"] * 3] * 3


def test_another_program_at_the_port_is_told_soon(monkeypatch):
    """It takes the connection, and never says a word that torch would understand."""
    monkeypatch.setattr(join, "ANSWER_TIMEOUT", timedelta(seconds=0.5))
    monkeypatch.setattr(join, "START_TIMEOUT", timedelta(seconds=2))
    monkeypatch.setenv("SLURM_STEP_NUM_TASKS", "2")
    names = ("PROCID", "LOCALID", "STEP_TASKS_PER_NODE")
    for name, value in zip(names, ("1", "1", "2"), strict=True):
        monkeypatch.setenv(f"SLURM_{name}", value)
    monkeypatch.setenv("SLURM_STEP_NODELIST", "localhost")
    with socket.create_server(("localhost", 0)) as other:
        monkeypatch.setenv("MASTER_PORT", str(other.getsockname()[1]))
        rank_info = RankInfo.from_environment()
        with (
            pytest.raises(UserError, match="what listens there does not answer"),
            joined(rank_info),
        ):
            pass


def in_its_own_group(_, folder, method):
    """As a program that has joined one before it calls; the environment tells of no launcher."""
    import os

    rank = int(os.environ["RANK"])
    address = f"tcp://localhost:{os.environ['MASTER_PORT']}"
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_PORT"):
        del os.environ[name]
    dist.init_process_group(
        "gloo",
        init_method=address if method == "tcp" else f"file://{folder}/store",
        rank=rank,
        world_size=2,
    )
    assert RankInfo.from_environment() == RankInfo(rank, 2, rank, 2, launched=True)
    with pytest.raises(UserError, match="needs 3 ranks, but the program's group has 2"):
        RankInfo.from_environment().mesh(ParallelConfig(stages=3))
    for turn in range(2):
        train(small(folder / f"run-{turn}"))
        value = torch.ones(1)
        dist.all_reduce(value)
        assert value.item() == 2
    os.environ["TORCHELASTIC_RESTART_COUNT"] = "1"
    assert RankInfo.from_environment().restarted
    again = train(small(folder / "run-0"))
    assert again == RunFolder(folder / "run-0").load_summary(), "it is gone on with, not refused"
    assert list(dist.distributed_c10d._world.pg_map) == [dist.group.WORLD], "none of ours is left"
    dist.destroy_process_group()


@pytest.mark.parametrize("method", ["tcp", "file"])
def test_the_programs_own_group_is_used_and_kept(run_ranks, tmp_path, method):
    run_ranks(in_its_own_group, 2, tmp_path, method)
    for turn in range(2):
        assert len(list((tmp_path / f"run-{turn}" / "trace").iterdir())) == 2


def small(folder):
    tree = {
        "model": {"name": "mlp", "hidden": 8, "depth": 2},
        "data": {"name": "digits", "batch_size": 32, "limit": 64},
        "head": {"name": "linear"},
        "modules": {"count": 2},
        "train": {"steps": 2},
        "parallel": {"threads": 1},
        "run": {"dir": str(folder)},
    }
    return configfile.parse(tree)


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory"),
        RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 8 bytes"),
        NotImplementedError("no such kernel"),
        RecursionError("maximum recursion depth exceeded"),
    ],
)
def test_an_error_of_this_rank_is_not_taken_for_another_ranks(error):
    """As where replicas wait for each other, and the optimizer's step is part of that."""
    with pytest.raises(type(error)) as raised, connecting():
        raise error
    assert raised.value is error


def test_a_connection_that_breaks_is_another_ranks():
    with (
        pytest.raises(NeighbourLostError, match=r"another rank broke: Connection closed by peer$"),
        connecting(),
    ):
        raise RuntimeError("Connection closed by peer\nand much advice")


def fails(rank_info, while_ending):
    """In a run that has posted a receive; gives how long the error was on its way."""
    began = []

    def run():
        with joined(rank_info):
            up, _ = open_chain(rank_info, "gloo")
            if up is not None:
                up.irecv((4,), torch.float32)
            dist.barrier()
            began.append(time.monotonic())
            raise KeyError("mine")

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(dist, "destroy_process_group", never)
        if while_ending:
            patched.setattr(dist.distributed_c10d, "_abort_process_group", while_ending)
        with pytest.raises(KeyError, match="mine"):
            run()
    return time.monotonic() - began[0]


def never(*_):
    """As nccl ends where a receive is posted, whose sender is gone."""
    threading.Event().wait()


def fails_again_and_again(rank_info, port, is_own):
    import os

    os.environ.update(MASTER_PORT=str(port), TORCHELASTIC_USE_AGENT_STORE="True")
    if is_own:
        dist.init_process_group("gloo")
    for _ in range(3):
        fails(rank_info, None)
        assert len(dist.distributed_c10d._world.pg_map) == is_own, "none of ours is left"
    with joined(rank_info):
        return ends_of(rank_info)


@pytest.mark.parametrize("is_own", [False, True])
def test_after_an_error_ranks_may_join_again(run_ranks, is_own):
    launchers = dist.TCPStore("localhost", 0, is_master=True)
    found = run_ranks(fails_again_and_again, 2, launchers.port, is_own, timeout=30)
    assert found == [(False, True), (True, False)]


def test_an_error_goes_on_even_where_nothing_ends(run_ranks):
    for seconds in run_ranks(fails, 2, never, timeout=30):
        assert seconds < 10 * ABORT_SECONDS


def ends(rank_info):
    with joined(rank_info):
        return ends_of(rank_info)


def ends_of(rank_info):
    up, down = open_chain(rank_info, "gloo")
    return up is not None, down is not None


@pytest.mark.parametrize("world_size", [1, 2, 3, 4, 6])
def test_every_edge_gets_a_p2p(run_ranks, world_size):
    expected = [(rank > 0, rank + 1 < world_size) for rank in range(world_size)]
    assert run_ranks(ends, world_size) == expected


def neighbour_dies(rank_info):
    import os

    with joined(rank_info):
        up, _ = open_chain(rank_info, "gloo")
        if up is None:
            os._exit(0)
        assert isinstance(up, WatchedP2P)
        with pytest.raises(NeighbourLostError, match="the connection to rank 0 broke"):
            up.irecv((4,), torch.float32).wait()
        return "told"


def test_a_dead_neighbour_is_noticed_at_once(run_ranks):
    with pytest.raises(AssertionError, match="rank 0: the process died"):
        run_ranks(neighbour_dies, 2)
