"""Gradients that may be None, and what an engine makes of them."""

import pytest
import torch
from torch import nn

from pipeline_local.config import OptimizerConfig
from pipeline_local.engines import gradients, optimizer
from pipeline_local.engines.guard import Guard
from pipeline_local.engines.torch import TorchEngine


def leaf(*values):
    return torch.tensor(values, requires_grad=True)


def test_none_where_nothing_depends_on_it():
    a, b = leaf(1.0, 2.0), leaf(3.0)
    found = gradients.of((a * a).sum(), [a, b])
    assert found[0].tolist() == [2.0, 4.0]
    assert found[1] is None
    assert gradients.of(torch.ones(()), [a, b]) == [None, None]


def test_no_two_share_memory():
    """Else clipping in place would scale a gradient twice, or a signal that is being sent."""
    a, b, x = leaf(1.0, 2.0), leaf(3.0, 4.0), leaf(0.0, 0.0)
    output_grad = torch.ones(2)
    found = gradients.of(x + (a + b), [x, a, b], output_grad)
    for one in found:
        one.mul_(3)
    assert [one.tolist() for one in found] == [[3.0, 3.0]] * 3
    assert output_grad.tolist() == [1.0, 1.0]


def test_each_element_has_memory_of_its_own():
    """Reconciliation writes the moved input there; torch gives one number for all of a sum."""
    x = leaf(1.0, 2.0)
    (g,) = gradients.of(x.sum(), [x])
    assert g.add_(torch.tensor([1.0, 2.0])).tolist() == [2.0, 3.0]


def test_sums_of_what_there_is():
    one, two = torch.tensor([1.0]), torch.tensor([2.0])
    found = gradients.plus([one, None, one, None], [two, two, None, None], alpha=-1)
    assert [None if g is None else g.item() for g in found] == [-1.0, -2.0, 1.0, None]


OPTIMIZERS = {
    "sgd": {"weight_decay": 0.5},
    "adamw": {"weight_decay": 0.5},
    "python:torch.optim:RMSprop": {"weight_decay": 0.5, "momentum": 0.9},
    "python:torch.optim:SGD": {"weight_decay": 0.5, "args": {"foreach": True}},
}


@pytest.mark.parametrize("clip", [None, 0.1])
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_a_parameter_without_a_gradient_is_left_alone(name, clip):
    """It neither decays nor moves on by its momentum, as under torch's own backward()."""
    used, spare = nn.Parameter(torch.ones(3)), nn.Parameter(torch.ones(3))
    config = OptimizerConfig(name=name, lr=0.1, **OPTIMIZERS[name])
    guard = Guard(nn.ParameterList([used, spare]), 1, "skip")
    engine = TorchEngine([used, spare], lambda p: optimizer.build(config, p), guard, clip=clip)
    loss, g = torch.ones(()), torch.full((3,), 0.5)

    def step(*microbatches):
        before = spare.detach().clone()
        for share in microbatches:
            engine.add(share, len(microbatches))
        engine.step(0.1, loss, 0)
        return not torch.equal(before, spare)

    assert not step([g, None])
    assert step([g, None], [g, g]), "one of the microbatches uses it"
    assert not step([g, None]), "though there is momentum"
    assert not step([None, None])
    assert not step([None, None], [None, None])
    assert step([None, g])


def test_sums_are_of_at_least_float32():
    """A double keeps its digits, and nothing is copied that is wide enough."""
    narrow = torch.tensor([2.0**-14], dtype=torch.float16)
    assert narrow.square().item() == 0
    assert gradients.at_least_float32(narrow).square().item() == 2.0**-28
    for x in (torch.ones(2), torch.ones(2, dtype=torch.float64)):
        assert gradients.at_least_float32(x) is x
