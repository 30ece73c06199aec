"""The traces of all stages in one file: which belong together, and arrows between them."""

import json

from pipeline_local.record.run_trace import gather
from pipeline_local.record.stage_trace import StageTrace
from pipeline_local.record.trace import Span


def span(act, module, begin, end, content="activations", step=4):
    return Span(act, module, step, 0, content, begin, end)


SECOND = 10**9
FIRST = [span("send", 0, 3000, 4000), span("send", 0, 5000, 6000, "signal")]
LAST = [
    span("recv", 1, SECOND + 2000, SECOND + 3500),
    span("recv", 1, SECOND + 5600, SECOND + 7000, "signal"),
]


def write(folder, stage, spans, start="2026-01-02", **more):
    path = folder / f"stage-{stage}.json"
    StageTrace(stage, 2, "here", start, spans, **more).write(path)
    return path


def test_arrows_and_counters(tmp_path):
    paths = [write(tmp_path, 0, FIRST), write(tmp_path, 1, LAST, clock=[(0, -SECOND)])]
    gather(paths).write(tmp_path / "trace.json")
    events = json.loads((tmp_path / "trace.json").read_text())["traceEvents"]
    slices = {(e["pid"], e["name"]): e for e in events if e["ph"] == "X"}
    transfer = slices.pop((2, "activations under way"))
    assert (2, "signal under way") not in slices, "nothing waited for its sender"
    receive = slices[2, "receive activations"]
    assert (receive["ts"], receive["dur"]) == (0, 1.5)
    assert (transfer["ts"], transfer["dur"]) == (1.001, 0.499), "since 1 ns after the send began"
    assert (transfer["pid"], transfer["tid"]) == (receive["pid"], receive["tid"])
    assert min(e["ts"] for e in slices.values()) == 0
    begins, ends = ({e["id"]: e for e in events if e["ph"] == kind} for kind in "sf")
    assert begins.keys() == ends.keys() == {0, 1}
    for number, content in enumerate(("activations", "signal")):
        for end, stage, act in ((begins, 1, "send"), (ends, 2, "receive")):
            event, around = end[number], slices[stage, f"{act} {content}"]
            assert (event["pid"], event["tid"]) == (around["pid"], around["tid"])
            assert around["ts"] <= event["ts"] < around["ts"] + around["dur"]
    counts = [e["args"]["under way"] for e in events if e["ph"] == "C"]
    assert counts == [1, 0, 1, 0]
    assert {e["name"] for e in events if e["ph"] == "C"} == {"messages to stage 1"}


def innermost(slices, event):
    around = (
        s
        for s in slices
        if (s["pid"], s["tid"]) == (event["pid"], event["tid"])
        and s["ts"] <= event["ts"] <= s["ts"] + s["dur"]
    )
    return max(around, key=lambda s: s["ts"])


def test_each_arrow_leads_from_the_slice_that_begins_first(tmp_path):
    """Perfetto would turn any other around: tests/record/test_in_perfetto.py."""
    early = [span("recv", 1, 2500, 3500), span("recv", 1, 3600, 7000, "signal")]
    gather([write(tmp_path, 0, FIRST), write(tmp_path, 1, early)]).write(tmp_path / "trace.json")
    events = json.loads((tmp_path / "trace.json").read_text())["traceEvents"]
    slices = [e for e in events if e["ph"] == "X"]
    begins, ends = ([innermost(slices, e)["ts"] for e in events if e["ph"] == p] for p in "sf")
    assert [begin < end for begin, end in zip(begins, ends, strict=True)] == [True, True]


def test_a_stage_without_a_trace_is_named(tmp_path):
    (tmp_path / "stage-1.json").write_text("cut o")
    trace = gather([write(tmp_path, 0, FIRST), tmp_path / "stage-1.json"])
    assert [stage.rank for stage in trace.stages] == [0]
    assert trace.missing == (1,)
    trace.write(tmp_path / "trace.json")
    assert gather([tmp_path / "absent.json"]) is None


def test_what_an_earlier_start_has_left_is_none_of_it(tmp_path):
    old = write(tmp_path, 0, FIRST, start="2026-01-01")
    trace = gather([old, write(tmp_path, 1, LAST)])
    assert [stage.rank for stage in trace.stages] == [1]
    assert trace.missing == (0,)
