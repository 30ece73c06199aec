"""Regression: numbers by hand, and labels [B] beside outputs [B, 1]."""

import pytest
import torch
from torch.nn import functional

from pipeline_local.errors import ConfigError
from pipeline_local.learning.tasks import TASKS, Regression


@pytest.mark.parametrize(
    ("loss", "wanted"),
    [("mse", (1 + 9) / 2), ("l1", (1 + 3) / 2), ("huber", (0.5 + 2.5) / 2)],
)
def test_losses(loss, wanted):
    options = TASKS.options("regression", {"loss": loss})
    task = TASKS.find("regression")(num_classes=0, label_shape=(), **options)
    outputs, labels = torch.tensor([[1.0], [5.0]]), torch.tensor([2.0, 2.0])
    assert task.output_shape == (1,)
    assert task.loss(outputs, labels) == wanted
    assert task.score(outputs, labels) == 2
    assert (task.metric, task.better) == ("mean_absolute_error", "lower")


def test_several_numbers():
    task = Regression(0, (2, 3))
    assert task.output_shape == (6,)
    outputs, labels = torch.zeros(4, 6), torch.ones(4, 2, 3)
    assert task.loss(outputs, labels) == functional.mse_loss(outputs.view(4, 2, 3), labels)


def test_heads_together_give_the_mean():
    task = Regression(0)
    heads = torch.tensor([[[1.0], [1.0]], [[3.0], [5.0]]])
    summed = task.part(heads[0]) + task.part(heads[1])
    assert task.together(summed, 2).tolist() == [[2.0], [3.0]]
    score = task.evaluate(heads[1], summed, torch.tensor([2.0, 9.0]), heads=2, samples=1)
    assert (score.loss, score.score, score.ensemble, score.count) == (1, 1, 0, 1)


def test_labels_become_float32():
    task = Regression(0)
    assert task.accept(torch.tensor([1, 2])).dtype == torch.float32
    assert task.accept(torch.tensor([1.5], dtype=torch.float64)).dtype == torch.float32
    assert task.example_labels(5, torch.Generator()).dtype == torch.float32
    with pytest.raises(ConfigError, match=r"task\.loss.*'l2'"):
        TASKS.options("regression", {"loss": "l2"})
