"""Auxiliary heads that see a part of each batch, written out with plain autograd."""

from dataclasses import replace

import pytest
import torch
from torch import nn
from torch.nn import functional

from pipeline_local import seeds
from pipeline_local.learning.module import LocalModule
from pipeline_local.learning.rules import Rules
from pipeline_local.learning.step import Step
from pipeline_local.learning.wire_format import WireFormat

RULES = Rules(seed=5, fraction=0.25, wire_format=WireFormat(torch.float64))
STEP = Step(3, lr=1.0, compare=True, log=True)


def make(index=1, rules=RULES, auxiliary=True):
    torch.manual_seed(0)
    body = nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.Tanh()).double()
    head = nn.Sequential(nn.Linear(8, 8), nn.BatchNorm1d(8), nn.Linear(8, 4)).double()
    return LocalModule(index, body, head, lambda p: torch.optim.SGD(p, lr=1.0), rules, auxiliary)


def batch(size=16):
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(size, 6, dtype=torch.float64, generator=generator)
    return x, torch.randint(4, (size,), generator=generator)


def chosen(size=16, number=3, microbatch=0):
    draw = seeds.generator(5, "head part", number, microbatch)
    return torch.randperm(size, generator=draw)[: size // 4].sort().values


def acts(module, x, labels, step=STEP, signal=None):
    y = module(x, labels, step)
    s = module.signal()
    module.receive(torch.ones_like(x) if signal is None else signal)
    module.learn()
    module.update(step)
    return y, s


def test_head_and_signal_are_those_of_the_part():
    """The body sees the whole batch, also in its batch norm; the head's statistics are those of the
    part."""
    module, reference, (x, labels) = make(), make(), batch()
    y, s = acts(module, x, labels)
    part = chosen()
    whole = reference.body(x)
    torch.testing.assert_close(y, whole)
    loss = functional.cross_entropy(reference.head(whole[part]), labels[part])
    (wanted,) = torch.autograd.grad(loss, whole, retain_graph=True)
    torch.testing.assert_close(s, wanted)
    assert sorted(s.abs().sum(1).nonzero().flatten().tolist()) == part.tolist()
    loss.backward()
    for moved, p in zip(module.parameters(), reference.parameters(), strict=True):
        torch.testing.assert_close(moved, p - p.grad)
    for name, value in reference.named_buffers():
        torch.testing.assert_close(dict(module.named_buffers())[name], value)
    torch.testing.assert_close(module.metrics["loss"], loss.detach())


def test_the_scale_of_the_gradient_stays():
    """Where all samples are alike, a part of them gives the gradient of all."""
    x, labels = batch(1)
    x, labels = x.repeat(16, 1), labels.repeat(16)
    (_, of_part), (_, of_all) = (
        acts(make(rules=replace(RULES, fraction=fraction)), x, labels) for fraction in (0.25, 1.0)
    )
    torch.testing.assert_close(of_part.sum(0), of_all.sum(0))


def test_the_networks_own_classifier_sees_all():
    x, labels = batch()
    signals = [
        acts(make(rules=rules, auxiliary=False), x, labels)[1]
        for rules in (RULES, replace(RULES, fraction=1.0))
    ]
    assert torch.equal(*signals)


@pytest.mark.parametrize("auxiliary", [True, False])
def test_neighbours_are_compared_where_there_is_a_signal(auxiliary):
    x, labels = batch()
    module, reference = (make(auxiliary=auxiliary) for _ in range(2))
    reference(x, labels, STEP)
    reference.signal()
    reference.receive(torch.zeros_like(x))
    g = reference._body_backward().input
    signal, part = torch.zeros_like(x), chosen()
    signal[part] = g[part] * (1 if auxiliary else 4)  # of a mean over 4 samples instead of 16
    acts(module, x, labels, signal=signal)
    assert module.metrics["cosine"] == pytest.approx(1.0)
    assert module.metrics["discord"] == pytest.approx(0.0, abs=1e-12)


def test_the_part_is_another_one_in_each_microbatch_of_each_step():
    parts = {tuple(chosen(64, n, m).tolist()) for n in range(3) for m in range(3)}
    assert len(parts) == 9
    module, (x, labels) = make(), batch(64)
    for number in range(3):
        step = Step(number, 1.0, microbatches=3)
        for microbatch in range(3):
            module(x, labels, step, microbatch)
            rows = module.signal().abs().sum(1).nonzero().flatten()
            assert torch.equal(rows, chosen(64, number, microbatch))
            module.learn()
