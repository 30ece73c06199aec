"""Adding up gradients of microbatches: the same bits, less memory, and what is given stays."""

import pytest
import torch
from torch import nn

from pipeline_local.engines.guard import Guard
from pipeline_local.engines.torch import TorchEngine
from pipeline_local.memory.live_bytes import LiveBytes


def make(*shape):
    module = nn.Linear(*shape, bias=False)
    params = [*module.parameters()]
    guard = Guard(module, 1, "fail", "")
    return TorchEngine(params, lambda p: torch.optim.SGD(p, lr=0.1), guard, None)


@pytest.mark.parametrize("microbatches", [1, 3])
def test_what_autograd_gave_stays_as_it_is(microbatches):
    """It may be shared: with a lagged message, or by two parameters."""
    engine = make(4, 3)
    given = [torch.randn(3, 4) for _ in range(3)]
    before = [one.clone() for one in given]
    for one in given:
        engine.add([one], microbatches)
    assert all(torch.equal(a, b) for a, b in zip(given, before, strict=True))
    a, b, c = (one / microbatches for one in before)
    assert torch.equal(engine.gradients[0], a + b + c)


def test_a_sum_is_kept_once():
    engine, size = make(64, 64), 64 * 64 * 4
    with LiveBytes() as live_bytes:
        for _ in range(3):
            engine.add([torch.ones(64, 64)], 3)
    assert live_bytes.peak == 3 * size, "the gradient, its share, and the sum"
