"""The acts of the last steps."""

import pytest

from pipeline_local.record.folder import RunFolder
from pipeline_local.record.stage_trace import StageTrace
from pipeline_local.record.trace import Span
from pipeline_local.report.spans import STEPS, last_acts
from tests.report.folders import make_run, write_trace


def test_the_last_steps_and_what_lies_between(tmp_path):
    acts = last_acts(RunFolder(make_run(tmp_path / "first")))
    first = [act for act in acts if act.rank == 0]
    assert {act.step for act in first if act.name == "learn"} == set(range(8 - STEPS, 8))
    assert [act.step for act in acts if act.name == "evaluate"] == [4, 4], "not that of the end"
    assert first[0][:5] == ("forward", 1, 0, 2, 0.0)
    assert first[2].length == pytest.approx(5.0)
    assert max(act.begin + act.length for act in acts) == pytest.approx(5 * 10 + 100 + 5 + 9)


def test_clocks_are_aligned_and_the_writer_is_left_out(tmp_path):
    folder = RunFolder(tmp_path)
    spans = [Span(act, 0, 7, 0, "", 0, 10**6) for act in ("forward", "learn", "write")]
    StageTrace(0, 2, "here", "2026", spans).write(folder.trace(0))
    late = [span._replace(begin=5 * 10**9, end=5 * 10**9 + 10**6) for span in spans]
    StageTrace(1, 2, "there", "2026", late, clock=[(0, -5 * 10**9)]).write(folder.trace(1))
    acts = last_acts(folder)
    assert [act.name for act in acts] == ["forward", "learn"] * 2
    assert {act.begin for act in acts} == {0.0}


def test_no_trace_or_one_that_was_cut_off(tmp_path):
    folder = RunFolder(tmp_path)
    assert last_acts(folder) == []
    write_trace(folder, 0, range(2))
    folder.trace(1).write_text('{"traceEv')
    assert {act.rank for act in last_acts(folder)} == {0}
