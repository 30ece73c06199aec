"""The store: what is pinned can be seen, by anyone, without waiting."""

from datetime import timedelta

import pytest
import torch.distributed as dist

from pipeline_local.errors import NeighbourLostError, RefusedElsewhereError
from pipeline_local.ranks.join import joined
from pipeline_local.watch import store as store_module
from pipeline_local.watch.store import RankStore
from tests.ports import free_port


def test_look_shows_only_what_is_there():
    store = dist.HashStore()
    stores = [RankStore(store, rank, 3) for rank in range(3)]
    assert stores[0].get_all("train") == []
    stores[2].set("train", {"step": 1})
    stores[0].set("train", {"step": 5})
    stores[2].set("train", {"step": 2})
    assert stores[1].get_all("train") == [{"step": 5}, {"step": 2}]
    assert stores[1].get_all("test") == []


def test_the_first_value_that_is_set_counts():
    store = dist.HashStore()
    one, two = RankStore(store, 0, 2), RankStore(store, 1, 2).clone()
    assert one.get_shared("verdict") is None
    assert two.compare_set("verdict", {"by": 1}) == {"by": 1}
    assert one.compare_set("verdict", {"by": 0}) == {"by": 1}
    assert one.get_shared("verdict") == two.get_shared("verdict") == {"by": 1}


def elect(rank_info):
    """All ranks set a value at once, over connections of their own."""
    with joined(rank_info) as store:
        rank_store = RankStore(store, rank_info.rank, rank_info.world_size)
        winner = rank_store.clone().compare_set("verdict", {"by": rank_info.rank})
        dist.barrier()
        return winner, rank_store.get_shared("verdict")


def test_all_ranks_agree_on_one_value(run_ranks):
    results = run_ranks(elect, 3)
    (winner, _) = results[0]
    assert results == [(winner, winner)] * 3
    assert winner["by"] in range(3)


def test_waiting_has_an_end():
    with pytest.raises(dist.DistError):
        RankStore(dist.HashStore(), 0, 2).wait("result", 1, timedelta(milliseconds=20))


def gather(rank_info):
    with joined(rank_info) as store:
        rank_store = RankStore(store, rank_info.rank, rank_info.world_size)
        rank_store.set("result", {"rank": rank_info.rank})
        facts = rank_store.gather("result", timedelta(seconds=30))
        dist.barrier()
        return facts


def test_gather_over_processes(run_ranks):
    assert run_ranks(gather, 3) == [[{"rank": 0}, {"rank": 1}, {"rank": 2}]] * 3


def vote(rank_info, refusing):
    """How each rank leaves a piece of work that one of them refuses."""
    with joined(rank_info) as store:
        rank_store = RankStore(store, rank_info.rank, rank_info.world_size)
        try:
            with rank_store.unanimous("work", timedelta(seconds=30)):
                if rank_info.rank == refusing:
                    raise KeyError("mine")
            outcome = "done"
        except (KeyError, RefusedElsewhereError) as error:
            outcome = type(error).__name__
        dist.barrier()
        return outcome


@pytest.mark.parametrize("refusing", [0, 1, 2, None])
def test_all_or_none(run_ranks, refusing):
    expected = ["done"] * 3 if refusing is None else ["RefusedElsewhereError"] * 3
    if refusing is not None:
        expected[refusing] = "KeyError"
    assert run_ranks(vote, 3, refusing) == expected


@pytest.mark.parametrize(
    ("agent", "server"), [("True", "the launcher"), ("False", "rank 0"), (None, "rank 0")]
)
def test_who_keeps_the_store(monkeypatch, agent, server):
    monkeypatch.delenv("TORCHELASTIC_USE_AGENT_STORE", raising=False)
    if agent is not None:
        monkeypatch.setenv("TORCHELASTIC_USE_AGENT_STORE", agent)
    rank_store = RankStore(dist.HashStore(), 0, 1)
    assert rank_store.server == f"served by {server}"
    assert rank_store.served_by_rank_0 == (server == "rank 0")


def test_no_further_connection_to_a_store_that_is_gone(monkeypatch):
    monkeypatch.setattr(store_module, "RECONNECT_TIMEOUT", timedelta(seconds=1))
    port, half_an_hour = free_port(), timedelta(minutes=30)
    server = dist.TCPStore("localhost", port, None, True, wait_for_workers=False)
    store = dist.TCPStore("localhost", port, None, False, half_an_hour)
    rank_store = RankStore(store, 1, 2)
    assert rank_store.clone()._store.timeout == half_an_hour
    del server
    with pytest.raises(NeighbourLostError, match="rank 0 broke: its store does not answer"):
        rank_store.clone()
    assert store.timeout == half_an_hour
