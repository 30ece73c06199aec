"""Optimizer state survives the round trip through named tensors, bit for bit."""

import pytest
import torch
from torch import nn

from pipeline_local.config import OptimizerConfig
from pipeline_local.engines import optimizer
from pipeline_local.engines.guard import Guard
from pipeline_local.engines.torch import TorchEngine
from pipeline_local.errors import UserError


def steps(net, opt, count):
    for seed in range(count):
        x = torch.randn(4, 3, generator=torch.Generator().manual_seed(seed))
        net(x).square().sum().backward()
        opt.step()
        opt.zero_grad()


@pytest.mark.parametrize("name", ["sgd", "adamw"])
@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_round_trip(name, momentum):
    torch.manual_seed(0)
    config = OptimizerConfig(name=name, lr=0.01, momentum=momentum)
    net = nn.Linear(3, 2)
    opt = optimizer.build(config, net.parameters())
    steps(net, opt, 3)
    other = nn.Linear(3, 2)
    other.load_state_dict(net.state_dict())
    restored = optimizer.build(config, other.parameters())
    named = {name: value.clone() for name, value in optimizer.tensors(opt).items()}
    optimizer.load(restored, named)
    steps(net, opt, 2)
    steps(other, restored, 2)
    for a, b in zip(net.parameters(), other.parameters(), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("name", ["sgd", "adamw"])
def test_a_state_is_laid_out_as_its_parameter(name):
    """A file keeps no strides, and fused optimizers walk through memory."""
    config = OptimizerConfig(name=name, lr=0.01)
    conv = nn.Conv2d(3, 4, 3).to(memory_format=torch.channels_last)
    opt = optimizer.build(config, conv.parameters())
    conv(torch.randn(2, 3, 8, 8)).square().sum().backward()
    opt.step()
    restored = optimizer.build(config, conv.parameters())
    named = {name: value.contiguous() for name, value in optimizer.tensors(opt).items()}
    optimizer.load(restored, named)
    again = optimizer.tensors(restored)
    assert again.keys() == named.keys()
    for key, value in optimizer.tensors(opt).items():
        assert torch.equal(again[key], value)
        assert again[key].stride() == value.stride()


def test_loading_changes_what_follows():
    """The round trip above would also pass if optimizers had no state."""
    net, other = nn.Linear(3, 2), nn.Linear(3, 2)
    other.load_state_dict(net.state_dict())
    config = OptimizerConfig()
    opt, fresh = (optimizer.build(config, n.parameters()) for n in (net, other))
    steps(net, opt, 3)
    other.load_state_dict(net.state_dict())
    steps(net, opt, 1)
    steps(other, fresh, 1)
    assert any((a != b).any() for a, b in zip(net.parameters(), other.parameters(), strict=True))


class Counting(torch.optim.Optimizer):
    """Its state has dtypes of its own."""

    def __init__(self, params):
        super().__init__(params, {"lr": 1.0})

    def step(self, closure=None):
        for parameter in self.param_groups[0]["params"]:
            state = self.state[parameter]
            state["seen"] = torch.ones(parameter.shape, dtype=torch.bool)
            state["count"] = torch.tensor(2**24 + 1)
            state["wide"] = torch.full(parameter.shape, 1 / 3, dtype=torch.float64)


def test_a_state_keeps_its_dtype():
    params = [nn.Parameter(torch.ones(3))]
    before, after = Counting(params), Counting(params)
    before.step()
    optimizer.load(after, optimizer.tensors(before))
    saved, found = optimizer.tensors(before), optimizer.tensors(after)
    assert saved.keys() == found.keys()
    for name, value in saved.items():
        assert value.dtype == found[name].dtype
        assert torch.equal(value, found[name])


class Adaptive(torch.optim.Optimizer):
    """It keeps numbers where tensors would do, as some libraries' optimizers do."""

    def __init__(self, params):
        super().__init__(params, {"lr": 1.0, "estimate": 0.1, "begun": False, "decay": 0.5})

    def step(self, closure=None):
        for group in self.param_groups:
            group["estimate"] *= 1.1
            group["begun"] = True
            for parameter in group["params"]:
                state = self.state[parameter]
                state["count"] = state.get("count", 0) + 1
                parameter.data -= group["lr"] * group["estimate"] / state["count"]


def test_an_optimizer_of_other_parameters_is_refused(monkeypatch):
    """A part of those that it gets is enough."""
    own, other = ([nn.Parameter(torch.ones(2)) for _ in range(2)] for _ in range(2))
    entries = {"some": lambda params: torch.optim.SGD(params[:1], lr=0.1)}
    entries["others"] = lambda params: torch.optim.SGD([*params, other[0]], lr=0.1)
    monkeypatch.setattr(optimizer.OPTIMIZERS, "_entries", entries)
    made = optimizer.build(OptimizerConfig("some"), iter(own))
    assert made.param_groups[0]["params"][0] is own[0]
    with pytest.raises(UserError, match="others has made an optimizer of other parameters"):
        optimizer.build(OptimizerConfig("others"), own)


def test_numbers_that_change_are_kept():
    """Those that do not are the configuration's, which may be another one in a resumed run."""

    def engine(parameter):
        guard = Guard(nn.Module(), 1, "fail")
        return TorchEngine([parameter], Adaptive, guard, clip=None)

    def step(engine, parameter):
        engine.add([torch.ones_like(parameter)], 1)
        engine.step(0.1, torch.tensor(1.0), 0)

    parameter = nn.Parameter(torch.ones(3))
    first = engine(parameter)
    assert first.tensors() == {}
    for _ in range(3):
        step(first, parameter)
    saved = {name: value.clone() for name, value in first.tensors().items()}
    names = ("number.0.count", "number.group0.begun", "number.group0.estimate")
    assert sorted(saved) == sorted(names)
    other = nn.Parameter(parameter.detach().clone())
    second = engine(other)
    second.load(saved)
    group = second.optimizer.param_groups[0]
    assert group["estimate"] == first.optimizer.param_groups[0]["estimate"]
    assert group["begun"] is True
    count = second.optimizer.state[other]["count"]
    assert (count, type(count)) == (3, int)
    step(first, parameter)
    step(second, other)
    assert torch.equal(parameter, other)
    assert second.tensors() == first.tensors()
