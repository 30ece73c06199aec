"""Rows are complete: every stage has written its line of the event."""

import json

from pipeline_local.loggers.rows import Tail
from pipeline_local.ranks.rank import RankInfo
from pipeline_local.record.metrics import Metrics


def line(stage, step, event="train", **more):
    facts = {"event": event, "stage": stage, "step": step, "epoch": 0.5, "time": 1.5 + stage}
    return json.dumps({**facts, "modules": {str(stage + 1): {"loss": step + stage}}, **more}) + "\n"


def test_a_row_waits_for_every_stage(tmp_path):
    files = [tmp_path / f"stage-{number}.jsonl" for number in range(2)]
    files[0].write_text("an earlier session's\n")
    tail = Tail({str(file): file.stat().st_size if file.exists() else 0 for file in files})
    assert list(tail.rows()) == []
    with files[0].open("a") as first, files[1].open("a") as second:
        first.write(line(0, 20) + line(0, 20, "test") + line(0, 40))
        first.flush()
        assert list(tail.rows()) == []
        whole = line(1, 20) + line(1, 20, "test")
        second.write(whole[:-9])
        second.flush()
        (row,) = tail.rows()
        assert (row.step, row.time) == (20, 1.5)
        assert row.values == {"epoch": 0.5, "loss/module_1": 20, "loss/module_2": 21}
        second.write(whole[-9:])
        second.flush()
        (row,) = tail.rows()
        assert row.values == {"epoch": 0.5, "test_loss/module_1": 20, "test_loss/module_2": 21}
        second.write(line(1, 40))
        second.flush()
        assert [row.step for row in tail.rows()] == [40]
        assert list(tail.rows()) == []


def test_a_line_that_was_cut_off_costs_no_other(tmp_path):
    """The follower begins before the rank that goes on with the file ends the line."""
    file = tmp_path / "stage-0.jsonl"
    file.write_text(line(0, 20) + line(0, 40)[:30])
    tail = Tail({str(file): file.stat().st_size})
    resumed = Metrics(file, {"stage": 0}, 4, RankInfo())
    for step in (40, 60):
        resumed.write(json.loads(line(0, step)))
    assert [row.step for row in tail.rows()] == [40, 60]
    resumed.close()


def test_a_file_that_cannot_be_read_now_is_read_later(tmp_path):
    file = tmp_path / "stage-0.jsonl"
    file.mkdir()
    tail = Tail({str(file): 0})
    assert list(tail.rows()) == []
    file.rmdir()
    file.write_text(line(0, 20))
    assert [row.step for row in tail.rows()] == [20]
