"""Muon with AdamW is torch's Muon on the matrices and torch's AdamW on the rest."""

import pytest
import torch
from torch import nn

from pipeline_local.config import OptimizerConfig
from pipeline_local.engines import optimizer

SETTINGS = {"lr": 0.02, "momentum": 0.9, "weight_decay": 0.1}


def network(dtype=torch.float32):
    torch.manual_seed(0)
    layers = [nn.Embedding(7, 4), nn.Linear(4, 6), nn.LayerNorm(6), nn.Linear(6, 7, bias=False)]
    return nn.Sequential(*layers).to(dtype)


def split(net):
    tables = [net[0].weight, net[3].weight]
    return [net[1].weight], [*tables, net[1].bias, *net[2].parameters()], tables


def steps(net, optimizers, count, start=0):
    for number in range(start, start + count):
        ids = torch.randint(7, (5,), generator=torch.Generator().manual_seed(number))
        net.zero_grad()
        nn.functional.cross_entropy(net(ids), ids.roll(1)).backward()
        for each in optimizers:
            each.step()


def test_it_is_torchs_two_optimizers():
    ours, theirs = network(), network()
    matrices, rest, _ = split(theirs)
    muon = torch.optim.Muon(matrices, 0.02, 0.1, 0.9, adjust_lr_fn="match_rms_adamw")
    adamw = torch.optim.AdamW(rest, 0.02, (0.9, 0.95), weight_decay=0.0, fused=True)
    config = OptimizerConfig("muon", **SETTINGS)
    made = optimizer.build(config, ours.parameters(), split(ours)[2])
    steps(ours, [made], 4)
    steps(theirs, [muon, adamw], 4)
    for one, two in zip(ours.parameters(), theirs.parameters(), strict=True):
        assert torch.equal(one, two)


def test_its_rate_is_that_of_its_groups():
    """As an engine sets it in each step."""
    net, before = network(), network()
    made = optimizer.build(OptimizerConfig("muon", **SETTINGS), net.parameters(), split(net)[2])
    for group in made.param_groups:
        group["lr"] = 0.0
    steps(net, [made], 1)
    for one, two in zip(net.parameters(), before.parameters(), strict=True):
        assert torch.equal(one, two)


def test_it_goes_on_after_a_checkpoint():
    config = OptimizerConfig("muon", **SETTINGS)
    net, other = network(), network()
    made = optimizer.build(config, net.parameters(), split(net)[2])
    steps(net, [made], 3)
    other.load_state_dict(net.state_dict())
    restored = optimizer.build(config, other.parameters(), split(other)[2])
    optimizer.load(restored, {k: v.clone() for k, v in optimizer.tensors(made).items()})
    for each, own in ((net, made), (other, restored)):
        steps(each, [own], 2, start=3)
    for one, two in zip(net.parameters(), other.parameters(), strict=True):
        assert torch.equal(one, two)


def test_a_transposed_weight_moves_alike():
    """GPT-2's layers keep theirs as [in, out]. Torch's default scale would tell them apart."""
    linear = nn.Linear(4, 16, bias=False)
    weight = nn.Parameter(linear.weight.detach().T.contiguous())
    before = linear.weight.detach().clone()
    linear.weight.grad = torch.randn(16, 4)
    weight.grad = linear.weight.grad.T.contiguous()
    for parameter in (linear.weight, weight):
        optimizer.build(OptimizerConfig("muon", **SETTINGS), [parameter]).step()
    assert not torch.equal(linear.weight, before)
    torch.testing.assert_close(weight.T, linear.weight, rtol=0, atol=2e-4)  # it is in bfloat16


@pytest.mark.parametrize("kind", ["norm alone", "matrix alone", "convolution"])
def test_a_module_may_have_only_one_kind(kind):
    part = {
        "norm alone": nn.LayerNorm(3),
        "matrix alone": nn.Linear(3, 3, bias=False),
        "convolution": nn.Conv1d(3, 3, 1, bias=False),
    }[kind]
    made = optimizer.build(OptimizerConfig("muon", **SETTINGS), part.parameters())
    before = [p.detach().clone() for p in part.parameters()]
    part(torch.randn(3, 3)).square().sum().backward()
    made.step()
    for one, two in zip(part.parameters(), before, strict=True):
        assert not torch.equal(one, two)


@pytest.mark.parametrize("name", ["sgd", "adamw"])
def test_only_matrices_decay(name):
    """With a gradient of zero, decay is all that moves a weight."""
    net = network()
    config = OptimizerConfig(name, lr=0.1, momentum=0.9, weight_decay=0.1, decay="matrices")
    made = optimizer.build(config, net.parameters(), split(net)[2])
    before = [p.detach().clone() for p in net.parameters()]
    for parameter in net.parameters():
        parameter.grad = torch.zeros_like(parameter)
    made.step()
    moved = [not torch.equal(p, old) for p, old in zip(net.parameters(), before, strict=True)]
    assert moved == [False, True, False, False, False, False]
