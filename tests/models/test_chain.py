"""Where one tensor is alive, a network is cut; what the graph loses is refused."""

import operator

import pytest
import torch
from torch import nn
from torch.nn import functional

from pipeline_local.models.chain import ChainLink, chain, spans

X = torch.randn(3, 4)


class Residual(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4))

    def forward(self, x):
        return x + self.inner(x)


class Two(nn.Module):
    """A chain; of one class with `Branching`'s, it would not be one."""

    def __init__(self, residual=False):
        super().__init__()
        self.a, self.b, self.residual = nn.Linear(4, 4), nn.Linear(4, 4), residual

    def forward(self, x):
        y = self.b(functional.relu(self.a(x)))
        return y + x if self.residual else y


def names(network, **args):
    return [link.name for link in chain(network, X, **args).links]


def test_chains_are_opened_and_branches_stay_whole():
    network = nn.Sequential(nn.Sequential(nn.Linear(4, 4), nn.ReLU()), Residual(), Two())
    assert names(network) == ["0.0", "0.1", "1", "2.a", "relu", "2.b"]
    assert names(network, opened=False) == ["0", "1", "2"]


def test_a_class_with_one_branching_module_stays_whole():
    assert names(nn.Sequential(Two(), Two(residual=True))) == ["0", "1"]


def test_links_run_as_the_network_does():
    network = nn.Sequential(nn.Linear(4, 4), Residual(), Two()).eval()
    found = chain(network, X)
    pieces = nn.Sequential(*(found.module(i, i + 1, "piece") for i in range(len(found.links))))
    assert torch.equal(pieces(X), network(X))


class Tokens(nn.Module):
    """Parameters that are only put beside or added are light."""

    def __init__(self):
        super().__init__()
        self.start = nn.Parameter(torch.zeros(1, 1, 4))
        self.embed, self.layer, self.head = nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 2)

    def forward(self, x):
        x = self.embed(x)
        x = torch.cat([self.start.expand(x.shape[0], -1, -1), x], 1)
        return self.head(self.layer(x))


def test_light_links_are_told_from_heavy_ones():
    found = chain(Tokens(), torch.randn(3, 5, 4))
    assert [(link.weighs, link.light) for link in found.links] == [
        (True, False), (True, True), (True, False), (True, False)
    ]  # fmt: skip
    assert spans(found.links) == [0, 2, 3]


def link(kind, shape):
    """Heavy, light or without weights."""
    node = torch.fx.Graph().call_function(operator.add)
    return ChainLink((node,), node, shape, "", kind != "-", kind != "heavy")


MAP, SMALL, FLAT = (2, 8, 8, 8), (2, 8, 4, 4), (2, 8)


@pytest.mark.parametrize(
    ("links", "starts"),
    [
        ([("heavy", MAP), ("light", MAP), ("-", MAP), ("heavy", FLAT)], [0, 3]),
        ([("-", FLAT), ("heavy", FLAT), ("heavy", FLAT), ("-", FLAT)], [0, 2]),
        ([("heavy", MAP), ("-", SMALL), ("heavy", SMALL), ("-", SMALL), ("-", FLAT),
          ("heavy", FLAT), ("-", FLAT), ("heavy", FLAT)], [0, 2, 4]),
        ([("heavy", MAP), ("-", FLAT), ("heavy", FLAT), ("heavy", FLAT), ("heavy", FLAT)],
         [0, 3, 4]),
        ([("heavy", FLAT), ("light", FLAT)], None),
    ],
)  # fmt: skip
def test_where_blocks_start(links, starts):
    assert spans([link(kind, shape) for kind, shape in links]) == starts
