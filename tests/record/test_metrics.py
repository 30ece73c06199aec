"""What a stage measures."""

import json
import time

import pytest
import torch

from pipeline_local.engines.replicas import Replicas
from pipeline_local.errors import UserError
from pipeline_local.learning.rules import Rules
from pipeline_local.learning.tasks import Score
from pipeline_local.ranks.rank import RankInfo
from pipeline_local.record import lines, metrics


def test_lines_are_written_at_once_and_appended(tmp_path):
    path = tmp_path / "metrics" / "stage-0.jsonl"
    for step in (1, 2):
        log = metrics.Metrics(path, {"stage": 0}, 4, RankInfo())
        log.write({"step": step})
        assert json.loads(path.read_text().splitlines()[-1]) == {"step": step}
        log.close()
    assert len(path.read_text().splitlines()) == 2


def test_a_line_that_was_cut_off_costs_no_other(tmp_path):
    path = tmp_path / "stage-0.jsonl"
    path.write_text('{"step": 1}\n{"st')
    log = metrics.Metrics(path, {"stage": 0}, 4, RankInfo())
    log.write({"step": 2})
    log.close()
    assert [*map(lines.read, path.read_text().splitlines())] == [{"step": 1}, None, {"step": 2}]


def test_a_full_disk_is_one_line(tmp_path):
    """Both at once and at the end, when the system tries it again."""
    log = metrics.Metrics(tmp_path / "stage-0.jsonl", {"stage": 0}, 4, RankInfo())
    log._file.close()
    log._file = open("/dev/full", "a", buffering=1)  # noqa: SIM115
    for write in (lambda: log.write({"step": 1}), log.close):
        with pytest.raises(UserError, match=r"jsonl cannot be written \(No space left on device\)"):
            write()
    (tmp_path / "file").write_text("")
    for path in (tmp_path / "file" / "stage-0.jsonl", tmp_path):
        with pytest.raises(UserError, match="cannot be written"):
            metrics.Metrics(path, {"stage": 0}, 4, RankInfo())


def test_facts_say_where_and_when_they_are_from(tmp_path):
    log = metrics.Metrics(tmp_path / "stage-1.jsonl", {"stage": 1}, 4, RankInfo())
    placed = log.placed({"step": 6, "lr": 0.1})
    log.close()
    assert abs(placed.pop("time") - time.time()) < 60
    assert placed == {"stage": 1, "epoch": 1.5, "step": 6, "lr": 0.1}


def test_clock_separates_training_from_waiting_and_saving():
    up, down = iter([0.5, 10.5, 10.75]), iter([0.0, 3.0, 3.0])
    clock = metrics.WallTime(lambda: next(up), lambda: next(down))
    with clock.training():
        time.sleep(0.001)
    with clock.evaluating():
        pass
    with clock.training():
        time.sleep(0.001)
    with clock.saving():
        time.sleep(0.001)
    facts = clock.facts()
    assert facts["waited"] == 0.75
    assert facts["seconds"] >= 0.002
    assert facts["checkpoint_stall_seconds"] >= 0.001
    pace, waits = clock.pace(100)
    assert pace == pytest.approx(200 / facts["seconds"], rel=0.01)
    assert waits == [1.0, 0.0], "more than the time itself, as this test says so"
    assert clock.pace(100) == (0, [0.0, 0.0])


def test_scores_add_up_over_batches():
    def score(*numbers):
        return Score(*map(torch.tensor, numbers))

    class Module:
        index, rules, replicas = 4, Rules(), Replicas()

    facts = metrics.of_scores([Module()], [[score(2.0, 3, 5, 8), score(1.0, 1, 0, 2)]])
    assert facts == {"5": {"accuracy": 0.4, "ensemble_accuracy": 0.5, "loss": pytest.approx(0.3)}}


def test_peak_memory():
    cpu = torch.device("cpu")
    assert metrics.peak_memory_bytes(cpu) > 2**20
    assert metrics.peak_memory(cpu)["memory_of"] == "process", "with Python and torch"
