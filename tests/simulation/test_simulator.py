"""The simulator: transfers, back-pressure, rings, deadlocks, against times found by hand."""

import math
from random import Random

import pytest

from pipeline_local.placement.costs import Link
from pipeline_local.simulation.simulator import (
    Channel,
    DeadlockError,
    Group,
    Recv,
    Reduce,
    Reduced,
    Send,
    Update,
    Work,
    simulate,
)

LINK = Link(latency_seconds=1.0, bytes_per_second=10.0)


def clocks(*programs):
    return [worker.clock for worker in simulate([iter(program) for program in programs])]


@pytest.mark.parametrize(
    ("ahead", "expected"),
    [
        (True, 2.0 + 2.0 + 1.0),  # sent at 2, on the wire for 2, arrives 1 later
        (False, 5.0 + 1.0 + 2.0 + 1.0),  # wanted at 5, which the sender hears 1 later
    ],
)
def test_a_message_takes_its_time(ahead, expected):
    channel = Channel(LINK, ahead=ahead)
    sender = [Work(2.0), Send(channel, 20)]
    receiver = [Work(0.0 if ahead else 5.0), Recv(channel)]
    assert clocks(sender, receiver) == [2.0, expected]
    assert clocks(receiver[:1], sender[:1]) == [receiver[0].seconds, 2.0]


def test_messages_follow_each_other_on_a_link():
    channel = Channel(Link(0.0, 10.0))
    ends = clocks([Send(channel, 20), Send(channel, 30)], [Recv(channel), Recv(channel)])
    assert ends == [0.0, 5.0]


def test_a_sender_runs_ahead_by_the_depth_of_its_channel():
    """The receiver is slow: it posts the next receive when it takes a message."""
    channel = Channel(Link(0.0, math.inf), depth=1)
    sender = [act for _ in range(3) for act in (Send(channel, 1), Work(1.0))]
    receiver = [act for _ in range(3) for act in (Recv(channel), Work(10.0))]
    assert clocks(sender, receiver) == [1 + 1 + 1, 30.0]
    channel = Channel(Link(0.0, math.inf), depth=1)
    sender = [act for _ in range(4) for act in (Send(channel, 1), Work(1.0))]
    receiver = [act for _ in range(4) for act in (Recv(channel), Work(10.0))]
    assert clocks(sender, receiver) == [11.0, 40.0], "the third leaves when the second is taken"


def test_a_ring_sums_when_all_are_there():
    group = Group(2, LINK)
    parts = [[Work(t), Reduce(group, 40), Reduced(group), Update(1.0)] for t in (3.0, 5.0)]
    assert clocks(*parts) == [5 + 2 * (1 + 1 + 2) + 1] * 2, "each chunk is announced first"


def test_a_long_sum_goes_round_in_segments():
    """Gloo waits for the segment before last: 6 MiB take two more round trips than 4 MiB."""
    ends = []
    for mebibytes in (4, 6):
        group = Group(2, Link(1.0, math.inf))
        acts = [Reduce(group, mebibytes * 2**20), Reduced(group)]
        ends.append(clocks(acts, acts)[0])
    assert ends == [2 * 2, 2 * 4]


def test_sums_overlap_with_work_and_follow_each_other():
    group = Group(2, Link(0.0, 10.0))
    acts = [Work(1.0), Reduce(group, 20), Work(1.0), Reduce(group, 20), Reduced(group)]
    assert clocks(acts, acts) == [1 + 2 + 2] * 2


def test_a_deadlock_is_reported():
    there, back = Channel(LINK), Channel(LINK)
    with pytest.raises(DeadlockError, match="workers 0, 1 wait for each other"):
        clocks([Recv(back), Send(there, 1)], [Recv(there), Send(back, 1)])


def test_an_observer_sees_work_and_waiting():
    seen, channel = [], Channel(LINK)
    programs = [[Work(2.0, "F"), Send(channel, 20)], [Recv(channel), Work(1.0, "L")]]
    simulate([iter(program) for program in programs], lambda *what: seen.append(what))
    (f, sent), (received, learnt) = programs
    assert sorted(seen, key=lambda what: (what[0], what[2], what[3])) == [
        (0, f, 0.0, 2.0),
        (0, sent, 2.0, 2.0),
        (1, received, 0.0, 5.0),
        (1, learnt, 5.0, 6.0),
    ]


def test_jitter_delays_each_message_anew():
    def ends(jitter, seed):
        channel = Channel(Link(0.0, math.inf), jitter=jitter, random=Random(seed))
        return clocks([Send(channel, 1)] * 50, [act for _ in range(50) for act in [Recv(channel)]])

    assert ends(0.0, 1) == [0.0, 0.0]
    assert ends(1.0, 1) == ends(1.0, 1) != ends(1.0, 2)
    assert 15 < ends(1.0, 1)[1] < 35, "half a second each, one after the other"


def test_the_order_of_the_workers_does_not_matter():
    def chain(order):
        channels = [Channel(LINK, depth=2) for _ in range(4)]

        def stage(k):
            for _ in range(10):
                if k:
                    yield Recv(channels[k - 1])
                yield Work(1.0 + k / 7)
                if k < 4:
                    yield Send(channels[k], 5)
            yield Update(0.5)

        workers = simulate([stage(k) for k in order])
        return sorted(worker.clock for worker in workers)

    assert chain(range(5)) == chain([4, 2, 0, 3, 1]) == chain([3, 4, 1, 0, 2])
