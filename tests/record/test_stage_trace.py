"""The file of a stage: rows and names for people, and the same spans when it is read."""

import json

import pytest

from pipeline_local.record.stage_trace import StageTrace
from pipeline_local.record.trace import NO_MODULE, Span

SPANS = [
    Span("recv", 0, 6, 1, "activations", 1_000_000_001, 1_000_000_403),
    Span("forward", 0, 6, 1, "", 1_000_000_500, 1_000_000_900),
    Span("recv", 1, 6, 1, "signal", 1_000_001_000, 1_000_001_000),
    Span("send", 1, 6, 1, "lagged message", 1_000_001_100, 1_000_001_200),
    Span("save", NO_MODULE, 6, 0, "", 1_000_001_300, 1_000_001_400),
    Span("write", 1, 6, 0, "", 1_000_001_350, 1_000_001_700),
]
DEVICE = [Span("forward", 0, 6, 1, "", 1_000_000_600, 1_000_000_950)]


def make(**changes):
    facts = {"rank": 1, "num_ranks": 3, "host": "here", "start": "2026-01-01", "spans": SPANS}
    return StageTrace(**{**facts, **changes})


def test_rows_and_names(tmp_path):
    make(device=DEVICE).write(tmp_path / "trace" / "stage-1.json")
    events = json.loads((tmp_path / "trace" / "stage-1.json").read_text())["traceEvents"]
    names = {e["tid"]: e["args"]["name"] for e in events if e["name"] == "thread_name"}
    (process,) = (e for e in events if e["name"] == "process_name")
    assert process["args"]["name"] == "stage 1 (rank 1, here)"
    spans = [e for e in events if e["ph"] == "X"]
    assert [(names[e["tid"]], e["name"]) for e in spans] == [
        ("data", "read data"),
        ("module 1", "forward"),
        ("receives", "receive signal"),
        ("sends", "send lagged message"),
        ("between steps", "copy for a checkpoint"),
        ("checkpoint writer", "write module 2"),
        ("device", "forward"),
    ]
    assert all(e["args"]["step"] == 7 for e in spans)
    assert spans[0]["args"] == {"module": 1, "step": 7, "microbatch": 1, "content": "activations"}


def test_what_is_read_is_what_was_written(tmp_path):
    trace = make(device=DEVICE, clock=[(5, -7), (9, -8)])
    trace.write(tmp_path / "stage-1.json")
    assert StageTrace.read(tmp_path / "stage-1.json") == trace


def test_spans_are_put_on_the_clock_of_the_first_rank():
    aligned = make(device=DEVICE, clock=[(0, 500)]).aligned()
    assert [s.begin - t.begin for s, t in zip(aligned.spans, SPANS, strict=True)] == [500] * 6
    assert aligned.device[0].end == DEVICE[0].end + 500
    assert aligned.aligned() == aligned


@pytest.mark.parametrize("text", ["", "[]", '{"traceEvents": []}', '{"traceEvents": 1}'])
def test_another_file_is_refused(tmp_path, text):
    (tmp_path / "x.json").write_text(text)
    with pytest.raises((ValueError, KeyError, TypeError)):
        StageTrace.read(tmp_path / "x.json")
