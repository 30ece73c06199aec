"""Queues that survive a checkpoint."""

import torch

from pipeline_local.learning.lagged_queue import LaggedQueue


def filled(name="awaiting"):
    queue = LaggedQueue(name)
    for step in (2, 10):  # numbers, not texts, are in order
        for microbatch in range(2):
            queue.push(step, microbatch, torch.full((2,), step), torch.tensor([microbatch]))
    return queue


def test_first_in_first_out():
    queue = filled()
    order = [queue.pop()[:2] for _ in range(len(queue))]
    assert order == [(2, 0), (2, 1), (10, 0), (10, 1)]


def test_restored_it_is_the_same():
    queue, other = filled(), filled("pending")
    restored = LaggedQueue("awaiting")
    restored.load({**other.tensors(), **queue.tensors()})
    assert len(restored) == len(queue) == 4
    for a, b in zip(queue, restored, strict=True):
        assert a[:2] == b[:2]
        assert all(torch.equal(x, y) for x, y in zip(a.tensors, b.tensors, strict=True))


def test_dropping_what_has_been_applied():
    queue = filled()
    queue.drop(2)
    assert [kept.step for kept in queue] == [10, 10]
    queue.drop(10)
    assert not queue.tensors()
