"""What a stage measures."""

import json
import time

import pytest
import torch

from pipeline_local.learning.rules import Rules
from pipeline_local.learning.tasks import Score
from pipeline_local.record import metrics


def test_lines_are_written_at_once_and_appended(tmp_path):
    path = tmp_path / "metrics" / "stage-0.jsonl"
    for step in (1, 2):
        log = metrics.Metrics(path)
        log.write({"step": step})
        assert json.loads(path.read_text().splitlines()[-1]) == {"step": step}
        log.close()
    assert len(path.read_text().splitlines()) == 2


def test_clock_separates_training_from_waiting_and_saving():
    waited = iter([0.5, 10.5, 10.75])
    clock = metrics.Clock(lambda: next(waited))
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
    assert clock.pace(100) == pytest.approx(200 / facts["seconds"], rel=0.01)
    assert clock.pace(100) == 0


def test_scores_add_up_over_batches():
    def score(*numbers):
        return Score(*map(torch.tensor, numbers))

    class Module:
        index, rules = 4, Rules()

    facts = metrics.of_scores([Module()], [[score(2.0, 3, 5, 8), score(1.0, 1, 0, 2)]])
    assert facts == {"5": {"accuracy": 0.4, "ensemble_accuracy": 0.5, "loss": pytest.approx(0.3)}}


def test_peak_memory_and_gpu_facts():
    cpu = torch.device("cpu")
    assert metrics.peak_memory_bytes(cpu) > 2**20
    assert metrics.gpu(cpu) == {}
