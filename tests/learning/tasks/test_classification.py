"""Classification: its numbers by hand, and the labels that it takes."""

import pytest
import torch
from torch.nn import functional

from pipeline_local.errors import UserError
from pipeline_local.learning.tasks import TASKS, Classification

LOGITS = torch.tensor([[2.0, 0.0, 0.0], [0.0, 1.0, 3.0], [0.0, 0.5, 0.0], [1.0, 0.0, 0.0]])
LABELS = torch.tensor([0, 1, 1, 2])


def test_loss_and_score():
    task = Classification(3)
    assert task.loss(LOGITS, LABELS) == functional.cross_entropy(LOGITS, LABELS)
    assert task.score(LOGITS, LABELS) == 0.5
    soft = functional.one_hot(LABELS, 3).float()
    assert task.loss(LOGITS, soft) == pytest.approx(task.loss(LOGITS, LABELS).item())
    assert task.score(LOGITS, soft) == 0.5
    smooth = TASKS.find("classification")(num_classes=3, label_shape=(), label_smoothing=0.1)
    uniform = -LOGITS.log_softmax(1).mean()
    wanted = 0.9 * task.loss(LOGITS, LABELS) + 0.1 * uniform
    assert smooth.loss(LOGITS, LABELS) == pytest.approx(wanted.item())


def test_a_coarse_dtype_is_widened():
    task = Classification(3)
    loss = task.loss(LOGITS.bfloat16(), LABELS)
    assert loss.dtype == torch.float32
    assert loss == task.loss(LOGITS.bfloat16().float(), LABELS)


def test_evaluation_sums_without_padding_and_smoothing():
    task = Classification(3, label_smoothing=0.3)
    labels = torch.tensor([0, 1, -100, -100])
    first, second = task.part(LOGITS), task.part(LOGITS.flip(0))
    score = task.evaluate(LOGITS, first + second, labels, heads=2, samples=2)
    assert score.count == 2
    assert score.loss == pytest.approx(functional.cross_entropy(LOGITS[:2], labels[:2]).item() * 2)
    assert score.score == 1
    both = (LOGITS.log_softmax(1) + LOGITS.flip(0).log_softmax(1)).argmax(1)
    assert score.ensemble == (both[:2] == labels[:2]).sum()
    together = task.together(first + second, 2)
    assert torch.allclose(together.exp().sum(1), torch.ones(4))


def test_labels():
    task = Classification(3)
    for dtype in (torch.int64, torch.int32, torch.uint8):
        labels = task.accept(torch.tensor([0, 2, 1], dtype=dtype))
        assert labels.dtype == torch.int64, "as a loss takes them"
        assert labels.tolist() == [0, 2, 1]
    assert torch.equal(task.accept(torch.tensor([0, 2, -100])), torch.tensor([0, 2, -100]))
    for odd in (3, -1):
        with pytest.raises(UserError, match=f"from 0 to 2, as the model has 3 outputs: got {odd};"):
            task.accept(torch.tensor([0, odd]))
    with pytest.raises(UserError, match=r"whole numbers: got torch.float32"):
        task.accept(torch.tensor([0.0]))
    with pytest.raises(ValueError, match=r"got labels of shape \(2,\)"):
        Classification(3, (2,))
    drawn = task.example_labels(100, torch.Generator())
    assert set(drawn.tolist()) == {0, 1, 2}


def test_divergence_from_a_teacher():
    """KL by hand; its gradient is temperature * (q - p) / B, whatever is added to all logits."""
    task, own = Classification(3), LOGITS.clone().requires_grad_()
    teacher = task.together(task.part(LOGITS) + task.part(LOGITS.flip(0)), 2)
    p, q = (teacher / 2).softmax(1), (own / 2).softmax(1)
    divergence = task.divergence(own, teacher + 5, 2.0)
    by_hand = 4 * (p * (p.log() - q.log())).sum(1).mean()
    torch.testing.assert_close(divergence, by_hand)
    (gradient,) = torch.autograd.grad(divergence, own)
    torch.testing.assert_close(gradient, 2 * (q - p).detach() / 4)
    assert task.divergence(LOGITS, LOGITS, 2.0) == pytest.approx(0.0, abs=1e-6)
    assert task.divergence(LOGITS.bfloat16(), teacher, 2.0).dtype == torch.float32
