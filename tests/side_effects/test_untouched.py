"""Further passes and evaluations leave buffers and modes as they were."""

import random

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional
from torch.nn.utils import parametrizations

from pipeline_local.config import ReconcileConfig
from pipeline_local.learning.body import Body
from pipeline_local.learning.contents import Feedback
from pipeline_local.learning.lag_plan import LagPlan
from pipeline_local.learning.lagged import LaggedMessages
from pipeline_local.learning.module import LocalModule
from pipeline_local.learning.rules import Rules
from pipeline_local.learning.step import Step
from pipeline_local.learning.tasks import Classification
from pipeline_local.learning.wire_format import WireFormat
from pipeline_local.side_effects.untouched import Buffers, evaluating

WIDTH = 6


class Counted(nn.Module):
    """Counts its passes in place, and by another tensor; what it computes depends on both."""

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(WIDTH, WIDTH)
        self.register_buffer("passes", torch.tensor(0))
        self.register_buffer("again", torch.tensor(0.0))
        self.register_buffer("first", None)

    def forward(self, x):
        self.passes += 1
        self.again = self.again + 1
        if self.first is None:
            self.first = x.detach().mean()
        return self.linear(x) * (1 + self.again / 8) + self.first + self.passes


class MovingMean(nn.Module):
    """Subtracts a moving mean of activations, which it updates in evaluation, too."""

    def __init__(self):
        super().__init__()
        self.register_buffer("mean", torch.zeros(WIDTH))

    def forward(self, x):
        y = x - self.mean.clone()
        with torch.no_grad():
            self.mean.lerp_(x.mean(0), 0.1)
        return y


class Coins(nn.Module):
    """Draws from the generators of Python and NumPy."""

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(WIDTH, WIDTH)

    def forward(self, x):
        if random.random() < 0.5:
            x = self.linear(x)
        return functional.dropout(x * random.gauss(1, 0.1) + np.random.randn(), 0.2, self.training)


def spectral():
    return parametrizations.spectral_norm(nn.Linear(WIDTH, WIDTH))


def norms():
    return nn.Sequential(nn.BatchNorm1d(WIDTH), nn.Linear(WIDTH, WIDTH), nn.BatchNorm1d(WIDTH))


def shared():
    """Two layers with one buffer."""
    one, two = MovingMean(), MovingMean()
    two.mean = one.mean
    return nn.Sequential(one, nn.Linear(WIDTH, WIDTH), two)


KINDS = (Counted, MovingMean, spectral, norms, shared, Coins)


def module_of(kind, recompute=False, **settings):
    torch.manual_seed(0)
    body = Body([kind(), nn.GELU(), kind()], recompute)
    head = nn.Sequential(kind(), nn.Linear(WIDTH, 3))
    settings = ReconcileConfig(weight=0.3, every=1, **settings)
    rules = Rules(task=Classification(3), reconcile=settings, wire_format=WireFormat())
    return LocalModule(1, body, head, lambda p: torch.optim.SGD(p, lr=0.1), rules)


def train(module, steps=2, microbatches=2, between=lambda module: None, **plan):
    generator = torch.Generator().manual_seed(1)
    for number in range(steps):
        step = Step(number, 0.1, microbatches, **plan)
        for part in range(microbatches):
            x, s = (torch.randn(8, WIDTH, generator=generator) for _ in range(2))
            module(x, torch.arange(8) % 3, step, part)
            module.signal()
            module.receive(s / 8 if step.compare else None)
            module.learn()
            if module.lagged.expects(step, part):
                module.apply_lagged(step, part, s / 8)
        module.update(step)
        between(module)
    return module.state_dict()


def buffers(state, module):
    return {name: state[name] for name, _ in module.named_buffers()}


def alike(one, two):
    return one.keys() == two.keys() and all(torch.equal(one[name], two[name]) for name in one)


@pytest.mark.parametrize("kind", KINDS)
def test_recomputing_changes_no_bit(kind):
    """The second run of a block starts from the buffers and the draws of the first."""
    assert alike(train(module_of(kind)), train(module_of(kind, recompute=True)))


@pytest.mark.parametrize("recompute", [False, True])
@pytest.mark.parametrize("estimator", ["exact", "finite_difference", "shift"])
def test_buffers_count_steps_and_not_passes(estimator, recompute):
    module = module_of(Counted, recompute, estimator=estimator)
    module.lagged = LaggedMessages(LagPlan((Feedback(1),), steps=0), 1)
    state = train(module, reconcile=True, compare=True)
    passes = [value.item() for name, value in state.items() if name.endswith(("passes", "again"))]
    assert passes == [4] * 6


@pytest.mark.parametrize("kind", KINDS)
def test_the_second_pass_is_that_of_the_first(kind):
    """At the same input it gives the same gradients, bit by bit: same buffers, same draws."""
    module = module_of(kind)
    x, labels = torch.randn(8, WIDTH), torch.arange(8) % 3
    step = Step(0, 0.1, reconcile=True, compare=True)
    before = Buffers(module)
    with torch.no_grad():
        module(x, labels, step)
        one = module._loss(module._pass.y, labels, None).outputs
        with before.again():
            two = module._loss(module._run_body(x), labels, None).outputs
        assert torch.equal(one, two)
        if kind in (Counted, MovingMean, shared):  # or the test could not fail
            third = module._loss(module._run_body(x), labels, None).outputs
            assert not torch.equal(one, third)


@pytest.mark.parametrize("kind", KINDS)
def test_evaluation_leaves_nothing_behind(kind):
    """Not in buffers, not in what is drawn later; and each evaluation gives the same."""
    seen = []

    def evaluate(module):
        with evaluating(module):
            seen.append(module.evaluate(torch.ones(5, WIDTH))[1:])

    module = module_of(kind)
    assert alike(train(module_of(kind)), train(module, between=evaluate))
    evaluate(module)
    assert torch.equal(seen[-1][0], seen[-2][0])


class Merging(nn.Linear):
    """Like adapters that are merged into the weight for evaluation."""

    merged = False

    def train(self, mode=True):
        self.merged = not mode
        return super().train(mode)


def test_every_layer_gets_its_own_mode_back():
    frozen, inner = nn.BatchNorm1d(3).eval(), nn.Dropout().train()
    stubborn = Merging(3, 3)
    module = nn.Sequential(nn.Sequential(frozen, inner), stubborn, nn.Sequential(inner, frozen))
    module[2].training = False
    with evaluating(module):
        assert not any(layer.training for layer in module.modules())
        assert stubborn.merged
    assert not frozen.training
    assert not module[2].training
    assert inner.training
    assert module[0].training
    assert stubborn.training
    assert not stubborn.merged


def test_constants_are_not_kept():
    """A large table that is never written to is copied for a moment only."""
    layer = nn.Module()
    layer.register_buffer("table", torch.zeros(1 << 15))
    layer.register_buffer("state", torch.zeros(1 << 15))
    layer.register_buffer("small", torch.zeros(1))
    kept = Buffers(layer)
    layer.state += 1
    kept.forget_constants()
    assert {id(layer.state), id(layer.small)} == set(kept._copies)
    with kept.again():
        assert layer.state.sum() == 0
        assert layer.table is not kept._named[0][1]["table"]
    assert layer.state.sum() == 1 << 15
