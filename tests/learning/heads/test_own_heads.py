"""A user's own head: what its entry sets is kept, and it leaves its input as it is."""

import sys

import pytest
import torch
from torch import nn
from torch.nn import functional

from pipeline_local.config import HeadConfig
from pipeline_local.configfile import configfile
from pipeline_local.data.datasets import describe
from pipeline_local.learning.heads.head import HEADS, options
from pipeline_local.placement.draw import draw

CPU = torch.device("cpu")


class Own(nn.Module):
    def __init__(self, site):
        super().__init__()
        self.linear = nn.Linear(site.shape[0], site.num_outputs)

    def forward(self, x):
        return self.linear(x)


class Set(Own):
    def __init__(self, site):
        super().__init__(site)
        nn.init.constant_(self.linear.weight, float(torch.tensor(0.25)))
        self.scale = nn.Parameter(torch.ones(1))


class Writing(Own):
    def forward(self, x):
        x -= 1
        return super().forward(functional.relu(x, inplace=True))


def lazy(site):
    return nn.Sequential(nn.Flatten(), nn.LazyLinear(site.num_outputs))


@pytest.fixture
def head(monkeypatch):
    """The head of module 1, made for a CPU."""
    monkeypatch.setitem(sys.modules, "own_heads", sys.modules[__name__])

    def make(name):
        tree = {
            "model": {"name": "mlp", "hidden": 6, "depth": 3},
            "modules": {"count": 2},
            "head": {"name": f"python:own_heads:{name}"},
            "data": {"name": "digits", "batch_size": 8},
            "train": {"steps": 4},
        }
        config = configfile.parse(tree)
        return draw(config, describe(config.data), tries=True).module(0, CPU).head

    return make


def test_what_the_entry_sets_is_kept(head):
    made, again = head("Set"), head("Set")
    assert made.linear.weight.unique().tolist() == [0.25]
    assert made.scale.item() == 1
    assert torch.equal(made.linear.bias, again.linear.bias)


def test_lazy_layers_get_their_shapes(head):
    assert head("lazy")[1].weight.shape == (10, 6)


def test_it_works_on_a_copy_of_its_input(head):
    x = torch.ones(2, 6)
    head("Writing")(x.requires_grad_()).sum().backward()
    assert x.tolist() == torch.ones(2, 6).tolist()


def test_options_are_those_of_the_entry_that_was_registered_last(monkeypatch):
    """A notebook's cell with a head may be edited, and run again."""

    def before(*, site, width: int = 4):
        return nn.Linear(site.shape[0], width)

    def after(*, site, height: int = 2):
        return nn.Linear(site.shape[0], height)

    for entry, expected in ((before, {"width": 4}), (after, {"height": 2})):
        monkeypatch.setitem(HEADS._entries, "edited", entry)
        assert options(HeadConfig(name="edited")) == expected
