"""One graph for training and evaluation; what it would lose is refused."""

import operator

import pytest
import torch
from torch import nn
from torch.nn import functional

from pipeline_local.models.chain import chain
from pipeline_local.models.tracing import ByMode, UntraceableError, kept, traced, watched

X = torch.randn(3, 4)


class Two(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(4, 4), nn.Linear(4, 4)

    def forward(self, x):
        return self.b(functional.relu(self.a(x)))


class Dropping(Two):
    def forward(self, x):
        return self.b(functional.dropout(self.a(x), 0.5, self.training, inplace=False))


@pytest.mark.parametrize("training", [True, False])
def test_flags_that_training_sets_are_kept(training):
    network = Dropping()
    found = chain(network, X)
    piece = found.module(0, len(found.links), "whole").train(training)
    network.train(training)
    torch.manual_seed(1)
    wanted = network(X)
    torch.manual_seed(1)
    assert torch.equal(piece(X), wanted)
    assert any(isinstance(module, ByMode) for module in piece.modules())


class Noisy(Two):
    def forward(self, x):
        return self.b(x) if self.training else self.b(self.a(x))


class Deciding(Two):
    def forward(self, x):
        return self.b(x) if x.sum() > 0 else self.a(x)


class Pair(Two):
    def forward(self, x):
        return self.a(x), self.b(x)


class Constant(Two):
    def forward(self, x):
        return self.b(self.a(x) + torch.arange(4.0) * x)


class Scaled(Two):
    def forward(self, x):
        return self.b(self.a(x) * (2.0 if self.training else 1.0))


@pytest.mark.parametrize(
    ("network", "message"),
    [
        (Noisy(), "different things in training and in evaluation"),
        (Scaled(), "different things in training and in evaluation"),
        (Deciding(), "control flow"),
        (Pair(), "more than one tensor"),
    ],
)
def test_what_a_graph_cannot_hold_is_refused(network, message):
    with pytest.raises(UntraceableError, match=message):
        chain(network, X)


def test_networks_are_left_as_they_are():
    network = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), Constant())
    network[1].eval()
    before = {name: value.clone() for name, value in network.state_dict().items()}
    attributes = set(vars(network)) | set(vars(network[2]))
    chain(network, X)
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())
    assert [module.training for module in network.children()] == [True, False, True]
    assert set(vars(network)) | set(vars(network[2])) == attributes


class Reshaping(Two):
    def __init__(self, size):
        super().__init__()
        self.size = size

    def forward(self, x):
        size = self.size(x)
        return self.b(self.a(x).view(size, -1)).view(size, -1)


@pytest.mark.parametrize("size", [lambda x: x.size(0), lambda x: x.shape[0], lambda x: x.size()[0]])
def test_the_size_of_the_batch_is_asked_of_the_tensor_at_hand(size):
    network = Reshaping(size)
    found = chain(network, X)
    assert len(found.links) == 4
    pieces = nn.Sequential(*(found.module(i, i + 1, "piece") for i in range(4)))
    assert torch.equal(pieces(X[:2]), network(X[:2]))


class Tall(Two):
    """Asks a weight for its size, which is no batch's."""

    def forward(self, x):
        return self.b(self.a(x)) * self.a.weight.size(0)


def test_other_sizes_are_left_alone():
    network = Tall()
    graph, held = traced(network, lambda module: isinstance(module, nn.Linear))
    seen = watched(graph, held, torch.randn(4, 4))
    size = next(node for node in graph.nodes if node.target == "size")
    assert [n.op for n in size.all_input_nodes] == ["get_attr"]
    assert seen["b"] == ((4, 4), True)
    assert any(node.target is operator.mul for node in graph.nodes)


def test_modes_and_statistics_are_kept():
    network = nn.Sequential(nn.BatchNorm1d(4), nn.Linear(4, 4).eval())
    with kept(network):
        network.train()
        network(X)
        assert network[0].running_mean.any()
    assert not network[0].running_mean.any()
    assert [module.training for module in network.modules()] == [True, True, False]
