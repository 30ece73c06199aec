"""Snapshots: copies that training cannot touch, in memory that is used again."""

from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from pipeline_local.record.snapshot import Snapshot


def state(value):
    weights = torch.full((3, 2), value).t()  # not contiguous
    return {"w": weights, "step": torch.tensor(value), "n": torch.tensor([2], dtype=torch.int64)}


def test_what_is_taken_does_not_change_with_the_original():
    live = state(1.0)
    copies = Snapshot().take(live)
    live["w"].fill_(7)
    assert copies.arrive() == 0
    assert copies.tensors.keys() == live.keys()
    assert torch.equal(copies.tensors["w"], torch.ones(2, 3))
    assert copies.tensors["w"].is_contiguous()
    assert copies.tensors["n"].dtype == torch.int64


def test_the_room_is_used_again():
    snapshot = Snapshot()
    first = snapshot.take(state(1.0)).tensors
    second = snapshot.take(state(2.0)).tensors
    assert first["w"].data_ptr() == second["w"].data_ptr()
    assert torch.equal(second["w"], torch.full((2, 3), 2.0))


def test_room_follows_a_state_that_changes_its_form():
    """The optimizer's state comes with the first step, and may change its type."""
    snapshot = Snapshot()
    snapshot.take({"w": torch.ones(2)})
    copies = snapshot.take({"w": torch.ones(3, dtype=torch.float64), "m": torch.zeros(1)})
    assert copies.tensors["w"].shape == (3,)
    assert copies.tensors["w"].dtype == torch.float64
    assert snapshot.take({"m": torch.ones(1)}).tensors.keys() == {"m"}


@pytest.mark.skipif(not torch.accelerator.is_available(), reason="needs a GPU")
def test_on_a_gpu_later_writes_queue_behind_the_copies():
    snapshot, live = (
        Snapshot(),
        torch.zeros(1 << 22, device=torch.accelerator.current_accelerator()),
    )
    for number in range(1, 5):
        live.fill_(number)
        copies = snapshot.take({"w": live})
        live.fill_(-1)
        assert copies.tensors["w"].is_pinned()
        assert copies.arrive() > 0
        assert (copies.tensors["w"] == number).all()


@pytest.mark.skipif(torch.accelerator.device_count() < 2, reason="needs two GPUs")
def test_on_a_gpu_other_than_the_first_another_thread_waits_there(monkeypatch):
    """As the thread that writes checkpoints does; it begins on the first one."""
    found = []

    class Event(torch.Event):
        def synchronize(self):
            found.append(torch.accelerator.current_device_index())
            super().synchronize()

        def elapsed_time(self, other):
            return 0.0  # torch's own wants no other class

    monkeypatch.setattr(torch, "Event", Event)
    device = torch.device(torch.accelerator.current_accelerator().type, 1)
    copies = Snapshot().take({"w": torch.ones(3, device=device)})
    with ThreadPoolExecutor(1) as pool:
        pool.submit(copies.arrive).result()
        assert pool.submit(torch.accelerator.current_device_index).result() == 0
    assert found == [1]
