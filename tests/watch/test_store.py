"""The board: what is pinned can be seen, by anyone, without waiting."""

from datetime import timedelta

import pytest
import torch.distributed as dist

from pipeline_local.errors import NeighbourLostError, RefusedElsewhereError
from pipeline_local.ranks.rank import joined
from pipeline_local.watch import store as board_module
from pipeline_local.watch.store import Board
from tests.conftest import free_port


def test_look_shows_only_what_is_there():
    store = dist.HashStore()
    boards = [Board(store, rank, 3) for rank in range(3)]
    assert boards[0].look("train") == []
    boards[2].pin("train", {"step": 1})
    boards[0].pin("train", {"step": 5})
    boards[2].pin("train", {"step": 2})
    assert boards[1].look("train") == [{"step": 5}, {"step": 2}]
    assert boards[1].look("test") == []


def test_what_is_claimed_is_the_first_ones():
    store = dist.HashStore()
    one, two = Board(store, 0, 2), Board(store, 1, 2).again()
    assert one.claimed("verdict") is None
    assert two.claim("verdict", {"by": 1}) == {"by": 1}
    assert one.claim("verdict", {"by": 0}) == {"by": 1}
    assert one.claimed("verdict") == two.claimed("verdict") == {"by": 1}


def elect(place):
    """All ranks claim at once, over connections of their own."""
    with joined(place) as store:
        board = Board(store, place.rank, place.world_size)
        winner = board.again().claim("verdict", {"by": place.rank})
        dist.barrier()
        return winner, board.claimed("verdict")


def test_all_ranks_hear_of_one_claim(run_ranks):
    results = run_ranks(elect, 3)
    (winner, _) = results[0]
    assert results == [(winner, winner)] * 3
    assert winner["by"] in range(3)


def test_waiting_has_an_end():
    with pytest.raises(dist.DistError):
        Board(dist.HashStore(), 0, 2).wait("result", 1, timedelta(milliseconds=20))


def gather(place):
    with joined(place) as store:
        board = Board(store, place.rank, place.world_size)
        board.pin("result", {"rank": place.rank})
        facts = board.gather("result", timedelta(seconds=30))
        dist.barrier()
        return facts


def test_gather_over_processes(run_ranks):
    assert run_ranks(gather, 3) == [[{"rank": 0}, {"rank": 1}, {"rank": 2}]] * 3


def vote(place, refusing):
    """How each rank leaves a piece of work that one of them refuses."""
    with joined(place) as store:
        board = Board(store, place.rank, place.world_size)
        try:
            with board.unanimous(timedelta(seconds=30)):
                if place.rank == refusing:
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
    ("agent", "keeper"), [("True", "the launcher"), ("False", "rank 0"), (None, "rank 0")]
)
def test_who_keeps_the_board(monkeypatch, agent, keeper):
    monkeypatch.delenv("TORCHELASTIC_USE_AGENT_STORE", raising=False)
    if agent is not None:
        monkeypatch.setenv("TORCHELASTIC_USE_AGENT_STORE", agent)
    board = Board(dist.HashStore(), 0, 1)
    assert board.keeper == f"kept by {keeper}"
    assert board.kept_by_rank_0 == (keeper == "rank 0")


def test_no_further_connection_to_a_board_that_is_gone(monkeypatch):
    monkeypatch.setattr(board_module, "RECONNECTING", timedelta(seconds=1))
    port, half_an_hour = free_port(), timedelta(minutes=30)
    server = dist.TCPStore("localhost", port, None, True, wait_for_workers=False)
    store = dist.TCPStore("localhost", port, None, False, half_an_hour)
    board = Board(store, 1, 2)
    assert board.again()._store.timeout == half_an_hour
    del server
    with pytest.raises(NeighbourLostError, match="rank 0 broke: its board does not answer"):
        board.again()
    assert store.timeout == half_an_hour
