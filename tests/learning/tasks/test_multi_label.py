"""Multi-label classification: numbers by hand."""

import pytest
import torch
from torch.nn import functional

from pipeline_local.errors import UserError
from pipeline_local.learning.tasks import MultiLabel

LOGITS = torch.tensor([[1.0, -1.0, 2.0], [-2.0, 0.5, 1.0]])
LABELS = torch.tensor([[1.0, 0.0, 0.0], [0.0, 1.0, 1.0]])


def test_loss_and_score():
    task = MultiLabel(0, (3,))
    assert (task.output_shape, task.label_dtype) == ((3,), torch.float32)
    by_hand = functional.softplus(torch.where(LABELS == 1, -LOGITS, LOGITS)).mean()
    assert task.loss(LOGITS, LABELS) == pytest.approx(by_hand.item())
    assert task.score(LOGITS, LABELS) == pytest.approx(5 / 6)
    assert task.loss(LOGITS.bfloat16(), LABELS).dtype == torch.float32


def test_heads_together_give_the_mean_of_their_logits():
    task = MultiLabel(0, (3,))
    summed = task.part(LOGITS) + task.part(torch.tensor([[0.0, 0.0, -9.0], [0.0, 0.0, 0.0]]))
    score = task.evaluate(LOGITS, summed, LABELS, heads=2, samples=2)
    assert score.score / score.count == pytest.approx(5 / 6)
    assert score.ensemble / score.count == 1


def test_labels():
    task = MultiLabel(0, (3,))
    assert torch.equal(task.accept(LABELS.long()), LABELS)
    soft = torch.tensor([[0.0, 0.3, 1.0], [torch.nan] * 3, [-100.0] * 3])  # and filled-up rows
    assert torch.equal(task.accept(soft).nan_to_num(), soft.nan_to_num())
    for odd in (2, -1, -100, 1.5, torch.nan):
        with pytest.raises(UserError, match=f"from 0 to 1: got {odd:g}; correct them, or choose"):
            task.accept(torch.tensor([[0.0, odd, 1.0]]))
    with pytest.raises(ValueError, match=r"vectors of 0 and 1, got labels of shape \(\)"):
        MultiLabel(0, ())
    assert task.example_labels(5, torch.Generator()).shape == (5, 3)


def test_divergence_of_each_label():
    task, teacher = MultiLabel(0, (3,)), LOGITS.flip(1)
    p, q = (teacher / 2).sigmoid(), (LOGITS / 2).sigmoid()
    each = p * (p / q).log() + (1 - p) * ((1 - p) / (1 - q)).log()
    torch.testing.assert_close(task.divergence(LOGITS, teacher, 2.0), 4 * each.mean())
    assert task.divergence(LOGITS, LOGITS, 2.0) == 0
