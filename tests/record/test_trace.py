"""Spans: seconds per act, which are kept, and what else measures them."""

from contextlib import contextmanager

import pytest

from pipeline_local.record.trace import NO_MODULE, Trace, What


def test_seconds():
    trace = Trace()
    for number in range(3):
        with trace.span("forward", module=1, step=number):
            pass
    with trace.span("recv", module=1, step=2, microbatch=4, content="signal"):
        pass
    seconds = trace.take_seconds()
    assert set(seconds) == {"forward", "recv"}
    total = sum(s.end - s.begin for s in trace.spans if s.act == "forward") / 1e9
    assert seconds["forward"] == pytest.approx(total)
    assert trace.take_seconds() == {}
    assert trace.spans[-1][:5] == ("recv", 1, 2, 4, "signal")


def test_only_the_newest_spans_are_kept():
    trace = Trace(capacity=2)
    for number in range(5):
        with trace.span("forward", 0, number):
            pass
    assert [span.step for span in trace.spans] == [3, 4]


def test_nothing_is_kept_while_it_does_not_record_but_seconds_count():
    trace = Trace()
    trace.records = False
    with trace.span("forward", 0, 0), trace.beside("save", 0):
        trace.records = True  # a write that ends later belongs to when it began
    assert [span.act for span in trace.spans] == ["forward"]
    trace.records = False
    with trace.span("forward", 0, 1):
        pass
    assert len(trace.spans) == 1
    assert set(trace.take_seconds()) == {"forward"}


def test_work_beside_the_acts_has_no_seconds():
    trace = Trace()
    with trace.beside("save", 3):
        trace.records = False
    (span,) = trace.spans
    assert span[:3] == ("save", NO_MODULE, 3)
    assert trace.take_seconds() == {}


def test_probes_enclose_the_act():
    trace, seen = Trace(), []

    @contextmanager
    def probe(what):
        seen.append((what, len(trace.spans)))
        yield
        seen.append((what, len(trace.spans)))

    trace.probes = (probe,)
    with trace.span("send", 0, 1, content="signal"):
        pass
    what = What("send", 0, 1, 0, "signal")
    assert seen == [(what, 0), (what, 1)]
