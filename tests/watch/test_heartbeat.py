"""Heartbeats: what one rank pins, another sees; ages and silences are counted, never compared."""

import time

import torch.distributed as dist

from pipeline_local.watch.heartbeat import Heartbeats, Laps
from pipeline_local.watch.status import RankStatus
from pipeline_local.watch.store import RankStore


def hearts(count):
    store = dist.HashStore()
    places = [RankStatus() for _ in range(count)]
    stores = [RankStore(store, rank, count) for rank in range(count)]
    made = [Heartbeats(rank_store, at) for rank_store, at in zip(stores, places, strict=True)]
    for heart in made:
        heart._laps = Ticking()
    return made, places


class Ticking:
    """Ten seconds between two looks."""

    def lap(self):
        return 10.0


def test_a_rank_is_seen_where_it_is():
    (one, two), (_, at) = hearts(2)
    one._round()
    assert set(one.sightings) == {0}
    at.enter("forward", 2, 1)
    two._round()
    one._round()
    assert set(one.sightings) == {0, 1}
    assert one.sightings[1].position == at.now
    assert one.identity(1)["pid"] == two.identity(1)["pid"] > 0


def test_a_rank_that_never_began_to_beat_can_still_be_identified():
    """Stopped within its first second, it must be killed by the others."""
    (one, two), _ = hearts(2)
    two.introduce()
    one._round()
    assert one.identity(1)["pid"] == two._identity["pid"] > 0


def test_the_age_grows_where_nothing_is_entered():
    (one,), (at,) = hearts(1)
    ages = []
    for act in ["forward", None, None, "forward", None]:
        if act:
            at.enter(act)
        one._round()
        ages.append(one.sightings[0].age)
    assert ages == [0, 10, 20, 0, 10]


def test_silence_grows_where_no_beat_comes():
    (one, two), _ = hearts(2)
    two._round()
    silences = []
    for beats in [True, False, False, True, False]:
        if beats:
            two._round()
        one._round()
        silences.append(one.sightings[1].silent)
    assert silences == [0, 10, 20, 0, 10]
    assert one.sightings[0].silent == 0


def test_the_thread_beats_and_says_goodbye():
    (one, two), _ = hearts(2)
    two.start()
    until = time.monotonic() + 20
    while two.rounds == 0:
        assert time.monotonic() < until
        time.sleep(0.01)
    two.leave(20)
    one._round()
    assert one.sightings[1].left
    assert not two.broken


def test_a_stopped_process_does_not_count_the_time_it_slept():
    laps = Laps(most=0.01)
    time.sleep(0.05)
    assert laps.lap() == 0.01
    assert Laps().lap() < 2
