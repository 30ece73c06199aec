"""Spans: seconds per act, and a file that Perfetto opens."""

import json

import pytest

from pipeline_local.record.trace import Trace


def test_seconds_and_file(tmp_path):
    trace = Trace()
    for number in range(3):
        with trace.span("forward", module=1, step=number):
            pass
    with trace.span("learn", module=1, step=2, microbatch=4):
        pass
    seconds = trace.take_seconds()
    assert set(seconds) == {"forward", "learn"}
    total = sum(s.end - s.begin for s in trace.spans if s.act == "forward") / 1e9
    assert seconds["forward"] == pytest.approx(total)
    assert trace.take_seconds() == {}
    trace.write(tmp_path / "trace" / "stage-0.json", stage=0)
    events = json.loads((tmp_path / "trace" / "stage-0.json").read_text())["traceEvents"]
    assert [e["name"] for e in events] == ["forward 0", "forward 1", "forward 2", "learn 2"]
    assert events[3]["args"] == {"step": 2, "microbatch": 4}


def test_only_the_newest_spans_are_kept():
    trace = Trace(capacity=2)
    for number in range(5):
        with trace.span("forward", 0, number):
            pass
    assert [span.step for span in trace.spans] == [3, 4]
