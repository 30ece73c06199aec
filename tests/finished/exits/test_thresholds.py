"""Who leaves where, and how far confidence and accuracy are apart, by hand."""

import pytest
import torch

from pipeline_local.finished.exits.thresholds import calibration_error, leave_at, top


def test_each_leaves_at_the_first_head_that_is_sure():
    confidence = torch.tensor([[0.9, 0.2, 0.3], [0.1, 0.8, 0.99], [0.1, 0.2, 0.3], [0.5, 0.9, 0.9]])
    assert leave_at(confidence, 0.8).tolist() == [0, 1, 2, 1]
    assert leave_at(confidence, 0.95).tolist() == [2, 2, 2, 2]
    assert leave_at(confidence, 0.5).tolist() == [0, 1, 2, 0], "it is enough to reach it"
    unknown = torch.tensor([[float("nan"), 0.2]])
    assert leave_at(unknown, 0.5).tolist() == [1]
    assert confidence[2].tolist() == pytest.approx([0.1, 0.2, 0.3]), "it is left alone"


def test_the_top_probability():
    logits = torch.tensor([[0.0, 0.0], [0.0, 100.0]])
    assert top(logits.log_softmax(1)).tolist() == pytest.approx([0.5, 1.0])


def test_calibration_error():
    sure = torch.full((10,), 0.95)
    right = torch.arange(10) < 8
    assert calibration_error(sure, right) == pytest.approx(0.15)
    # two bins, each off in its own direction: they do not cancel
    mixed = torch.tensor([0.9, 0.9, 0.5, 0.5])
    hits = torch.tensor([True, False, True, True])
    assert calibration_error(mixed, hits) == pytest.approx((2 * 0.4 + 2 * 0.5) / 4)
    # one bin: they do
    assert calibration_error(torch.tensor([0.51, 0.53]), torch.tensor([1, 0])) == pytest.approx(
        0.02
    )
    assert calibration_error(torch.tensor([0.0, 1.0]), torch.tensor([0, 1])) == 0
