"""Live storages: what was there before is counted once; fake tensors count as real ones."""

import copy

import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from pipeline_local.memory.live_bytes import LiveBytes


def work(weight):
    y = weight.t() @ weight
    return (y * 2).sum()


def test_a_view_of_what_was_there_is_not_counted_again():
    weight = torch.zeros(100, 100)
    live_bytes = LiveBytes()
    live_bytes.hold([weight, weight[0]])
    assert live_bytes.live == 40_000
    with live_bytes:
        work(weight)
    assert live_bytes.peak == 3 * 40_000 + 4  # the sum
    del weight
    assert live_bytes.live == 0


def test_what_is_on_paper_takes_nothing():
    paper = torch.nn.Linear(100, 100, device="meta")
    live_bytes = LiveBytes()
    with live_bytes:
        kept = copy.deepcopy(paper).to_empty(device="cpu")
    assert live_bytes.live == sum(p.nbytes for p in kept.parameters())


def test_fake_tensors_count_as_real_ones():
    with FakeTensorMode():
        weight = torch.zeros(100, 100)
        live_bytes = LiveBytes()
        live_bytes.hold([weight])
        with live_bytes:
            work(weight)
    assert live_bytes.peak == 3 * 40_000 + 4  # the sum
