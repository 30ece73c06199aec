"""The file of a stage's measurements."""

import json
import time

import pytest

from pipeline_local.errors import UserError
from pipeline_local.ranks.rank import RankInfo
from pipeline_local.record import lines
from pipeline_local.record.metrics import Metrics


def test_lines_are_written_at_once_and_appended(tmp_path):
    path = tmp_path / "metrics" / "stage-0.jsonl"
    for step in (1, 2):
        log = Metrics(path, {"stage": 0}, 4, RankInfo())
        log.write({"step": step})
        assert json.loads(path.read_text().splitlines()[-1]) == {"step": step}
        log.close()
    assert len(path.read_text().splitlines()) == 2


def test_a_line_that_was_cut_off_costs_no_other(tmp_path):
    path = tmp_path / "stage-0.jsonl"
    path.write_text('{"step": 1}\n{"st')
    log = Metrics(path, {"stage": 0}, 4, RankInfo())
    log.write({"step": 2})
    log.close()
    assert [*map(lines.read, path.read_text().splitlines())] == [{"step": 1}, None, {"step": 2}]


def test_a_full_disk_is_one_line(tmp_path):
    """Both at once and at the end, when the system tries it again."""
    log = Metrics(tmp_path / "stage-0.jsonl", {"stage": 0}, 4, RankInfo())
    log._file.close()
    log._file = open("/dev/full", "a", buffering=1)  # noqa: SIM115
    for write in (lambda: log.write({"step": 1}), log.close):
        with pytest.raises(UserError, match=r"jsonl cannot be written \(No space left on device\)"):
            write()
    (tmp_path / "file").write_text("")
    for path in (tmp_path / "file" / "stage-0.jsonl", tmp_path):
        with pytest.raises(UserError, match="cannot be written"):
            Metrics(path, {"stage": 0}, 4, RankInfo())


def test_facts_say_where_and_when_they_are_from(tmp_path):
    log = Metrics(tmp_path / "stage-1.jsonl", {"stage": 1}, 4, RankInfo())
    placed = log.placed({"step": 6, "lr": 0.1})
    log.close()
    assert abs(placed.pop("time") - time.time()) < 60
    assert placed == {"stage": 1, "epoch": 1.5, "step": 6, "lr": 0.1}
