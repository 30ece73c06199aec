"""Whom everybody waits for: tables of positions and the verdict they must give."""

import pytest

from pipeline_local.errors import EXIT_NEIGHBOUR_LOST, EXIT_STALLED
from pipeline_local.watch.stall import Sighting, Verdict, find_stall, lost_verdict
from pipeline_local.watch.status import EVERYONE, Position

TIMEOUT = 60


def at(act, age, peer=None, first=False, silent=0.0, left=False, phase="step", module=2):
    return Sighting(Position(phase, 17, first, act, module, 3, peer), age, silent, left)


WORKS = at("forward", 5)

NO_STALL = {
    "all work": [WORKS, WORKS],
    "a slow neighbour that goes on": [at("send", 500, peer=1), at("forward", 50)],
    "waiting for one who waits for one who goes on": [
        at("send", 500, peer=1),
        at("send", 400, peer=2),
        at("learn", 59),
    ],
    "the first time": [at("forward", 599, first=True), at("recv", 599, peer=0, first=True)],
    "waiting for the others at the end": [at("gather", 500, peer=EVERYONE), WORKS],
    "whoever has ended is silent": [WORKS, at("gather", 0, silent=900, left=True)],
    "a missing beat or two": [WORKS, at("forward", 1, silent=10)],
    "nobody yet": [],
}


@pytest.mark.parametrize("ranks", NO_STALL.values(), ids=NO_STALL)
def test_no_stall(ranks):
    assert find_stall(dict(enumerate(ranks)), TIMEOUT) is None


STALLS = {
    "works too long": ([WORKS, at("forward", 61)], 1, "no progress for 61 s: in 'forward'"),
    "step, module, microbatch": ([at("learn", 61)], 0, "module 2, microbatch 3, step 17"),
    "everybody waits for it": (
        [at("send", 90, peer=1), at("learn", 61), at("recv", 61, peer=1)],
        1,
        "; rank 0 waits for it on the edge 0 -> 1",
    ),
    "not whoever waits longest": (
        [at("forward", 61), at("recv", 500, peer=0), at("recv", 900, peer=1)],
        0,
        "; rank 1 waits for it on the edge 0 -> 1",
    ),
    "the data": ([at("recv", 61, module=1), at("recv", 59, peer=0)], 0, "waiting for the data"),
    "the data of a replica": (
        [at("reduce", 61, peer=EVERYONE), at("recv", 61, module=1), at("recv", 59, peer=1)],
        1,
        "waiting for the data, module 1, microbatch 3, step 17; rank 2 waits for it on the edge",
    ),
    "silent": (
        [WORKS, at("send", 1, peer=0, silent=61)],
        1,
        "no sign of life for 61 s (stopped, or its host hangs); last seen in 'send'",
    ),
    "silent even in its first step": (
        [WORKS, at("forward", 1, first=True, silent=61)],
        1,
        "no sign",
    ),
    "the first time, ten times as long": ([at("forward", 601, first=True)], 0, "for 601 s"),
    "in an evaluation": (
        [at("evaluate", 61, phase="evaluation")],
        0,
        "evaluation after step 17",
    ),
    "a circle": (
        [at("recv", 61, peer=1), at("send", 70, peer=0), at("recv", 80, peer=1)],
        0,
        "wait for each other: rank 0 is in 'recv', waiting for rank 1 on the edge 0 -> 1",
    ),
    "for one who has ended": ([at("recv", 61, peer=1), at("gather", 0, left=True)], 0, "rank 1"),
    "everybody for everybody": (
        [at("rendezvous", 61, peer=EVERYONE), at("rendezvous", 62, peer=EVERYONE)],
        0,
        "waiting for the other ranks",
    ),
}


@pytest.mark.parametrize(("ranks", "culprit", "text"), STALLS.values(), ids=STALLS)
def test_stalls(ranks, culprit, text):
    verdict = find_stall(dict(enumerate(ranks)), TIMEOUT)
    assert verdict is not None
    assert verdict.rank == culprit
    assert text in verdict.text
    assert verdict.exit_code == EXIT_STALLED
    assert "\n" not in verdict.text


def test_a_death_tells_what_was_last_seen():
    verdict = lost_verdict(1, {0: at("send", 2, peer=1), 1: at("forward", 1)})
    assert verdict.text == (
        "its process is gone (killed or crashed), or its host or the network to it is; last seen"
        " in 'forward', module 2, microbatch 3, step 17; rank 0 waits for it on the edge 0 -> 1"
    )
    assert verdict.exit_code == EXIT_NEIGHBOUR_LOST
    assert "process is gone" in lost_verdict(5, {}).text


def test_a_verdict_travels_as_json():
    verdict = Verdict("stalled", 3, "text")
    assert Verdict(**verdict.facts()) == verdict
