"""Whoever writes to a part's input is found out, by whatever name of the memory."""

import pytest
import torch
from torch import nn
from torch.nn import functional

from pipeline_local.side_effects.writes import keeps_input, on_a_copy

WRITING = {
    "method": lambda x: x.sub_(1),
    "operator": lambda x: x.__imul__(2),
    "flag": lambda x: functional.relu(x, inplace=True),
    "view": lambda x: x[:, 0].zero_(),
    "index": lambda x: x.__setitem__((0, 0), 1.0),
    "data": lambda x: x.data.mul_(2),
    "detached": lambda x: x.detach().exp_(),
    "out": lambda x: torch.mul(x, 2, out=x),
    "foreach": lambda x: torch._foreach_add_([x], 1),
    "layer": lambda x: nn.Sequential(nn.Flatten(), nn.Dropout(0.5, inplace=True))(x),
}
KEEPING = {
    "copy": lambda x: x.clone().sub_(1),
    "statistics": lambda x: functional.batch_norm(x, x.mean(0), x.var(0), training=True),
    "nothing": lambda x: x,
}


class Block(nn.Module):
    def __init__(self, work, only=None):
        super().__init__()
        self.work, self.only = work, only

    def forward(self, x):
        if self.only in (None, self.training):
            self.work(x)
        return x + 1


@pytest.mark.parametrize("only", [None, True, False])
@pytest.mark.parametrize("name", WRITING)
def test_writing(name, only):
    block = Block(WRITING[name], only)
    assert not keeps_input(block, torch.empty(2, 4, device="meta"))
    on_a_copy(block)
    x = torch.randn(2, 4)
    before = x.clone()
    with torch.no_grad():
        block.train(only is not False)(x)
    assert torch.equal(x, before)


@pytest.mark.parametrize("name", KEEPING)
def test_keeping(name):
    assert keeps_input(Block(KEEPING[name]), torch.empty(2, 4, device="meta"))


def test_what_values_decide_counts_as_writing():
    block = Block(lambda x: x.sub_(1) if x.sum() > 0 else None)
    assert not keeps_input(block, torch.empty(2, 4, device="meta"))
