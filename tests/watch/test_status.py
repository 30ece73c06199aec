"""Where a rank is: every act is a new value, the first phase of a kind is marked."""

import pytest

from pipeline_local.record.trace import Trace
from pipeline_local.watch.status import Position, RankStatus


def test_the_first_phase_of_each_kind_is_marked():
    at, marks = RankStatus(), []
    assert at.now.first
    for number, kind in enumerate(["plain", "compared", "plain", "compared"]):
        with at.during("step", number, kind):
            marks.append(at.now.first)
    with at.during("evaluation", 4):
        marks.append(at.now.first)
    assert marks == [True, True, False, False, True]


def test_a_phase_that_failed_was_not_done():
    at = RankStatus()
    with pytest.raises(KeyError), at.during("step", 0):
        raise KeyError
    with at.during("step", 0):
        assert at.now.first


def test_acts_and_waits():
    at = RankStatus()
    with at.during("step", 7):
        at.enter("recv", 2, 1)
        here = at.now
        with at.waiting(0):
            assert at.now == Position("step", 7, True, "recv", 2, 1, 0)
        assert at.now is here
        at.enter("recv", 2, 1)
        assert at.now == here
        assert at.now is not here, "an equal act is progress"


def test_a_wait_that_fails_stays_on_record():
    at = RankStatus()
    with pytest.raises(KeyError), at.waiting(3):
        raise KeyError
    assert at.now.peer == 3


def test_spans_are_acts():
    at = RankStatus()
    trace = Trace(status=at)
    with at.during("step", 3), trace.span("learn", module=1, step=2, microbatch=4):
        assert at.now == Position("step", 3, True, "learn", 2, 4)
    assert at.now.act == "between acts"
