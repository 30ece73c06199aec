"""What the modules of a stage measure."""

import pytest
import torch

from pipeline_local.engines.replicas import Replicas
from pipeline_local.learning.rules import Rules
from pipeline_local.learning.tasks import Score
from pipeline_local.record import measurements


def test_scores_add_up_over_batches():
    def score(*numbers):
        return Score(*map(torch.tensor, numbers))

    class Module:
        index, rules, replicas = 4, Rules(), Replicas()

    facts = measurements.of_scores([Module()], [[score(2.0, 3, 5, 8), score(1.0, 1, 0, 2)]])
    assert facts == {"5": {"accuracy": 0.4, "ensemble_accuracy": 0.5, "loss": pytest.approx(0.3)}}
