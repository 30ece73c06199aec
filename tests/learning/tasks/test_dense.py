"""Dense classification: positions that count nowhere, and weights of batches."""

import pytest
import torch
from torch.nn import functional

from pipeline_local.errors import UserError
from pipeline_local.learning.tasks import Dense

LOGITS = torch.randn(4, 3, 2, 2, generator=torch.Generator().manual_seed(0))
LABELS = LOGITS.argmax(1)
WRONG = (LABELS + 1) % 3


def test_loss_is_the_mean_over_positions_that_count():
    task = Dense(3, (2, 2), ignore=255)
    assert task.output_shape == (3, 2, 2)
    assert task.loss(LOGITS, WRONG) == pytest.approx(functional.cross_entropy(LOGITS, WRONG).item())
    partly = WRONG.clone()
    partly[0] = 255
    wanted = functional.cross_entropy(LOGITS[1:], WRONG[1:])
    assert task.loss(LOGITS, partly) == pytest.approx(wanted.item())
    assert task.loss(LOGITS, torch.full_like(WRONG, 255)) == 0


@pytest.mark.parametrize("ignore", [255, 0])
def test_score_counts_no_ignored_position(ignore):
    """Even if the network says `ignore` there, as it may where that is a class, the background."""
    task = Dense(3, (2, 2), ignore=ignore)
    counts = ignore != LABELS
    labels = torch.where(counts, LABELS, ignore)
    assert task.score(LOGITS, labels) == 1
    half = labels.clone()
    half[:2][counts[:2]] = -100
    wanted = counts[2:].sum() / counts.sum()
    assert task.score(LOGITS, half) == pytest.approx(wanted.item())


def test_every_position_has_the_same_weight_in_evaluations():
    """Whichever batch it is in; the padding behind `samples` counts nowhere."""
    task = Dense(3, (2, 2), ignore=255)
    labels = LABELS.clone()
    labels[0] = 255
    labels[1, 0] = WRONG[1, 0]
    parts = task.part(LOGITS)
    score = task.evaluate(LOGITS, parts, labels, heads=1, samples=3)
    assert (score.count, score.score, score.ensemble) == (8, 6, 6)
    wanted = functional.cross_entropy(LOGITS[:3], labels[:3], ignore_index=255, reduction="sum")
    assert score.loss == wanted
    halves = [
        task.evaluate(LOGITS[i:j], parts[i:j], labels[i:j], 1, j - i) for i, j in ((0, 2), (2, 3))
    ]
    assert sum(half.loss for half in halves) == pytest.approx(wanted.item())
    assert sum(half.score for half in halves) == 6


def test_labels():
    task = Dense(3, (2, 2), ignore=255)
    assert torch.equal(
        task.accept(torch.where(LABELS == 0, 255, LABELS)).unique().cpu()[-1:], torch.tensor([255])
    )
    padded = torch.where(LABELS == 0, -100, LABELS)
    assert torch.equal(task.accept(padded), torch.where(LABELS == 0, 255, LABELS))
    assert task.loss(LOGITS, task.accept(padded)).isfinite()
    with pytest.raises(UserError, match=r"labels of dense are whole numbers: got torch.float32"):
        task.accept(LABELS.float())
    with pytest.raises(UserError, match=r"from 0 to 2, .* got 7"):
        task.accept(torch.full((1, 2, 2), 7))
    with pytest.raises(ValueError, match=r"maps \[H, W\], got labels of shape \(\)"):
        Dense(3, ())
    assert task.example_labels(5, torch.Generator()).shape == (5, 2, 2)


def test_divergence_is_a_mean_over_positions():
    """Of all; a teacher has an opinion where there is no label, too."""
    task, teacher = Dense(3, (2, 2)), LOGITS.flip(0)
    p, q = teacher.softmax(1), LOGITS.softmax(1)
    by_hand = (p * (p.log() - q.log())).sum() / (4 * 2 * 2)
    torch.testing.assert_close(task.divergence(LOGITS, teacher, 1.0), by_hand)
