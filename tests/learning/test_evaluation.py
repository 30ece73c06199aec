"""Evaluating in microbatches: less memory, the same scores."""

from dataclasses import replace

import pytest
import torch
from torch import nn

from pipeline_local.layout import IGNORE_LABEL
from pipeline_local.learning.evaluation import Evaluation
from pipeline_local.learning.module import LocalModule
from pipeline_local.learning.rules import Rules
from pipeline_local.learning.tasks import Classification, Dense, MultiLabel, Regression, Task
from pipeline_local.memory.live_bytes import LiveBytes

SAMPLES = 13
"""Of a batch of 16; the others are padding, in two microbatches of four."""


class Median(Task):
    """A metric that is no mean over samples: parts of a batch would have another."""

    def loss(self, outputs, labels):
        return outputs.float().square().mean()

    def score(self, outputs, labels):
        return outputs.median()


def modules(task, make_head):
    torch.manual_seed(0)
    rules = replace(Rules(), task=task)
    bodies = [nn.Sequential(nn.Conv2d(3, 3, 3, padding=1), nn.BatchNorm2d(3)) for _ in range(2)]
    made = [
        LocalModule(k, body, make_head(), lambda p: torch.optim.SGD(p, lr=0.1), rules)
        for k, body in enumerate(bodies)
    ]
    return [module.eval() for module in made]


def of_integers(made):
    """Modules whose sums are exact, in whatever order a CPU adds up few rows or many."""
    generator = torch.Generator().manual_seed(0)
    for module in made:
        for part in module.modules():
            if isinstance(part, nn.BatchNorm2d):
                part.eps = 1e-12  # next to 1 it is nothing; torch 2.11 refuses 0
            elif isinstance(part, (nn.Conv2d, nn.Linear)):
                for tensor in part.parameters():
                    tensor.data = torch.randint(-2, 3, tensor.shape, generator=generator).float()
    return made


def evaluate(made, x, labels, parts):
    scores, below = [], None
    for module in made:
        evaluation, activations, summed = Evaluation(module, parts), [], []
        above = [None] * parts if below is None else below.chunk(parts)
        given = zip(x.chunk(parts), labels.chunk(parts), above, strict=True)
        for number, part in enumerate(given):
            y, s = evaluation.see(*part, SAMPLES, number)
            activations.append(y)
            summed.append(s)
        evaluation.end_batch()
        x, below = torch.cat(activations), torch.cat(summed)
        scores.append(evaluation.scores)
    return scores


def classifier():
    return nn.Sequential(nn.Flatten(), nn.Linear(3 * 36, 5))


@pytest.mark.parametrize("parts", [2, 4, 16])
@pytest.mark.parametrize("task", [Classification(5), Median((5,))], ids=["classes", "median"])
def test_a_batch_has_one_score_whatever_its_parts(task, parts):
    x, labels = torch.randint(-2, 3, (16, 3, 6, 6)).float(), torch.randint(5, (16,))
    labels[SAMPLES:] = IGNORE_LABEL
    whole, cut = (
        evaluate(of_integers(modules(task, classifier)), x, labels, n) for n in (1, parts)
    )
    for (one,), (other,) in zip(whole, cut, strict=True):
        assert other.count == one.count == SAMPLES
        assert vars(other) == vars(one), "bit for bit"


@pytest.mark.parametrize("task", [Regression(0, (5,)), MultiLabel(5, (5,)), Median((5,))])
def test_a_replica_may_have_nothing_but_padding(task):
    """Of the last batch; its sums are added to those of the others."""
    module, _ = modules(task, classifier)
    evaluation = Evaluation(module, 2)
    evaluation.see(torch.zeros(8, 3, 6, 6), torch.full((8, 5), torch.nan), None, 3, 1)
    evaluation.end_batch()
    (score,) = evaluation.scores
    assert [float(v) for v in (score.loss, score.score, score.ensemble, score.count)] == [0.0] * 4


@pytest.mark.parametrize("parts", [2, 4, 16])
def test_maps_are_scored_part_by_part(parts):
    task = Dense(5, (6, 6))
    x, labels = torch.randn(16, 3, 6, 6), torch.randint(-1, 5, (16, 6, 6))
    labels[labels < 0] = task.ignore
    whole, cut = (
        evaluate(modules(task, lambda: nn.Conv2d(3, 5, 1)), x, labels, n) for n in (1, parts)
    )
    for (one,), several in zip(whole, cut, strict=True):
        assert len(several) == parts
        for name in ("score", "ensemble", "count"):
            assert sum(getattr(s, name) for s in several) == getattr(one, name)
        assert float(sum(s.loss for s in several)) == pytest.approx(float(one.loss), rel=1e-5)


def test_parts_take_less_memory():
    def peak(task, head, labels, parts):
        first, _ = modules(task, head)
        evaluation, x = Evaluation(first, parts), torch.randn(16 // parts, 3, 6, 6)
        with LiveBytes() as live_bytes:
            for number, part in enumerate(labels.chunk(parts)):
                evaluation.see(x, part, None, 16, number)
            evaluation.end_batch()
        return live_bytes.peak

    classes = Classification(5), classifier, torch.zeros(16, dtype=torch.int64)
    assert peak(*classes, 4) < 0.5 * peak(*classes, 1)
    maps = Dense(5, (6, 6)), lambda: nn.Conv2d(3, 5, 1), torch.zeros(16, 6, 6, dtype=torch.int64)
    assert peak(*maps, 4) < 0.4 * peak(*maps, 1)
