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
    return TorchEngine(params, lambda p: torch.optim.SGD(p, lr=0.1), guard)


@pytest.mark.parametrize("microbatches", [1, 3, 4])
def test_what_autograd_gave_stays_as_it_is(microbatches):
    """It may be shared: with a lagged message, or by two parameters."""
    engine = make(4, 3)
    given = [torch.randn(3, 4) for _ in range(3)]
    before = [one.clone() for one in given]
    for one in given:
        engine.add([one], microbatches)
    assert all(torch.equal(a, b) for a, b in zip(given, before, strict=True))
    a, b, c = (one / microbatches for one in before)
    if microbatches == 3:  # which is rounded, and a GPU rounds product and sum at once
        torch.testing.assert_close(engine.gradients[0], a + b + c)
    else:
        assert torch.equal(engine.gradients[0], a + b + c)


def test_a_gradient_that_comes_later_has_its_share():
    """The first microbatch has none, the second one the first."""
    engine = make(2, 2)
    for given in (None, torch.ones(2, 2), torch.ones(2, 2), None):
        engine.add([given], 4)
    assert torch.equal(engine.gradients[0], torch.full((2, 2), 0.5))


def test_a_sum_is_kept_once():
    engine, size = make(64, 64), 64 * 64 * 4
    with LiveBytes() as live_bytes:
        for _ in range(3):
            engine.add([torch.ones(64, 64)], 3)
    assert live_bytes.peak == 2 * size, "the gradient and the sum"
