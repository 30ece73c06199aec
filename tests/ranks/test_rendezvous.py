"""The meeting: ranks that start together share a store that nobody has used before."""

from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta

import pytest
import torch.distributed as dist

from pipeline_local.ranks.rendezvous import rendezvous

SOON = timedelta(seconds=60)


def start(store, world_size, order):
    """All ranks of one start, each in a thread; the last of `order` comes last."""
    with ThreadPoolExecutor(world_size) as threads:
        coming = {rank: threads.submit(rendezvous, store, rank, world_size, SOON) for rank in order}
        return [coming[rank].result() for rank in range(world_size)]


@pytest.mark.parametrize("order", [[0, 1, 2], [2, 1, 0]])
def test_ranks_of_a_start_share_what_no_earlier_start_can_see(order):
    store = dist.HashStore()
    for number in range(4):
        first, *others = start(store, 3, order)
        assert not any(part.check(["step"]) for part in others), f"start {number}"
        first.set("step", str(number))
        assert [part.get("step") for part in others] == [str(number).encode()] * 2


def test_a_rank_that_came_and_died_before_the_others_came_does_no_harm():
    store = dist.HashStore()
    with pytest.raises(dist.DistError):
        rendezvous(store, 1, 3, timedelta(milliseconds=50))
    first, *others = start(store, 3, [0, 2, 1])
    first.set("step", "1")
    assert all(part.check(["step"]) for part in others)


def test_a_rank_that_never_comes_is_named():
    with pytest.raises(dist.DistError, match=r"ranks \[1, 2\] did not join"):
        rendezvous(dist.HashStore(), 0, 3, timedelta(milliseconds=50))


def test_one_rank_alone_waits_for_nobody():
    assert not rendezvous(dist.HashStore(), 0, 1, SOON).check(["anything"])
