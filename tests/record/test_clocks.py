"""The clocks of ranks: which are compared, and times on the clock of the first rank."""

import time

import pytest

from pipeline_local.ranks.join import joined
from pipeline_local.record import clocks
from pipeline_local.record.clocks import ClockOffsets, shifted
from pipeline_local.watch.store import RankStore

HOUR = 3600 * 10**9


def compare(rank_info, others):
    """The samples of a rank; those of `others` have another host, and a clock an hour ahead."""
    if rank_info.rank in others:
        real = time.monotonic_ns
        time.monotonic_ns = lambda: real() + HOUR
        clocks.host = lambda: f"host {rank_info.rank}"
    with joined(rank_info) as store:
        found = ClockOffsets(RankStore(store, rank_info.rank, rank_info.world_size))
        found.measure()
        found.measure()
    return found.samples


def test_a_clock_that_is_ahead_is_set_back(run_ranks):
    first, second, third = run_ranks(compare, 3, (1, 2))
    assert first == []
    for samples in (second, third):
        assert [add for _, add in samples] == pytest.approx([-HOUR, -HOUR], abs=HOUR / 10)
        assert samples[0][0] < samples[1][0]


def test_ranks_of_one_host_have_one_clock(run_ranks):
    assert run_ranks(compare, 2, ()) == [[], []]


def test_a_difference_changes_evenly():
    samples = [(1000, 10), (2000, 30)]
    assert [shifted(t, samples) for t in (1000, 1500, 2000, 3000)] == [1010, 1520, 2030, 3050]
    assert shifted(1500, samples[:1]) == 1510
    assert shifted(1500, []) == 1500
