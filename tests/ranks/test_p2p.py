"""Single tensors between two processes. Those for GPUs run where there are some."""

import pytest
import torch
import torch.distributed as dist

from pipeline_local.errors import NeighbourLostError
from pipeline_local.ranks.join import joined
from pipeline_local.ranks.p2p import GlooP2P, Pending, StagedP2P
from tests.chain import open_chain

DTYPES = [torch.float32, torch.bfloat16, torch.float64, torch.int64, torch.uint8]


def tensor(dtype, number):
    return torch.arange(6).reshape(2, 3).add(number).to(dtype)


def exchange(rank_info, kind, dtypes, transposed):
    """The second rank gives what it received, as CPU tensors."""
    with joined(rank_info):
        up, down = open_chain(rank_info, kind)
        if down:
            sent = [tensor(dtype, n).to(rank_info.device) for n, dtype in enumerate(dtypes)]
            sent = [t.t().contiguous().t() if transposed else t for t in sent]
            for pending in [down.isend(t) for t in sent]:
                pending.wait()
            dist.barrier()
            return None
        arriving = [up.irecv((2, 3), dtype) for dtype in dtypes]
        received = [pending.wait() for pending in arriving]
        assert all(t.device == rank_info.device for t in received)
        received = [t.cpu().clone() for t in received]
        dist.barrier()
        return [t.float().tolist() for t in received]


def check(run_ranks, kind, transposed=False):
    _, received = run_ranks(exchange, 2, kind, DTYPES, transposed)
    assert received == [tensor(dtype, n).float().tolist() for n, dtype in enumerate(DTYPES)]


@pytest.mark.skipif(torch.accelerator.is_available(), reason="the ranks would sit on GPUs")
@pytest.mark.parametrize("transposed", [False, True])
def test_gloo(run_ranks, transposed):
    """Strided tensors are sent as what they mean."""
    check(run_ranks, "gloo", transposed)


@pytest.mark.skipif(not torch.accelerator.is_available(), reason="no GPU")
@pytest.mark.parametrize("transposed", [False, True])
def test_staged(run_ranks, transposed):
    check(run_ranks, "staged", transposed)


@pytest.mark.skipif(torch.accelerator.device_count() < 2, reason="nccl wants a GPU per rank")
@pytest.mark.parametrize("transposed", [False, True])
def test_nccl(run_ranks, transposed):
    check(run_ranks, "nccl", transposed)


def test_full_memory_is_not_taken_for_a_lost_neighbour(monkeypatch):
    """Torch's own advice names what the user can do; the neighbour is well."""

    def full(*_):
        raise torch.OutOfMemoryError("out of memory")

    monkeypatch.setattr(dist, "isend", full)
    with pytest.raises(torch.OutOfMemoryError):
        GlooP2P(dist.group.WORLD, 1).isend(torch.zeros(1))


def test_a_closed_connection_is_told_in_one_line(monkeypatch):
    def closed(*_):
        raise RuntimeError("Connection closed by peer\nand much advice")

    monkeypatch.setattr(dist, "isend", closed)
    with pytest.raises(NeighbourLostError, match=r"rank 1 broke: Connection closed by peer$"):
        GlooP2P(dist.group.WORLD, 1).isend(torch.zeros(1))


@pytest.mark.skipif(torch.accelerator.device_count() < 2, reason="needs two GPUs")
def test_staged_waits_on_the_gpu_that_it_sends_from(monkeypatch):
    """In a thread of its own, which begins on the first GPU."""
    found = []

    def isend(*_):
        found.append(torch.accelerator.current_device_index())
        return Pending(torch.zeros(1), lambda: torch.zeros(1))

    monkeypatch.setattr(GlooP2P, "isend", isend)
    device = torch.device(torch.accelerator.current_accelerator().type, 1)
    StagedP2P(dist.group.WORLD, 1, device).isend(torch.ones(3, device=device)).wait()
    assert found == [1]
