"""A block or head that cannot be trained is named, with what it holds or does."""

import pytest
import torch
from torch import nn

from pipeline_local.errors import UserError
from tests.memory.trials import tried


@pytest.mark.parametrize(
    ("block", "message"),
    [
        (lambda: Complex(persistent=True), "a buffer of torch.complex64 .factors., which no"),
        (lambda: Complex(trained=True), "a parameter of torch.complex64 .factors., and"),
    ],
)
def test_complex_numbers(config, block, message):
    with pytest.raises(UserError, match=rf"block 'middle' has {message}"):
        tried(config(block))
    blueprint = tried(config(Complex))
    module = blueprint.module(1, torch.device("cpu"))
    assert module.body[0].factors.dtype == torch.complex64
    assert module.body[0].factors.imag.any()


class Complex(nn.Linear):
    def __init__(self, trained=False, persistent=False):
        super().__init__(12, 12)
        factors = torch.polar(torch.ones(7), torch.arange(7.0))
        if trained:
            self.factors = nn.Parameter(factors)
        else:
            self.register_buffer("factors", factors, persistent=persistent)

    def forward(self, x):
        return torch.fft.irfft(torch.fft.rfft(super().forward(x)) * self.factors, n=12)


class Remembers(nn.Linear):
    """A buffer, which each step in training sets."""

    def __init__(self, remember):
        super().__init__(12, 12)
        self.register_buffer("seen", torch.zeros(12))
        self.remember = remember

    def forward(self, x):
        y = super().forward(x)
        if self.training:
            self.seen = self.remember(self.seen, y)
        return y - self.seen[:12]


@pytest.mark.parametrize(
    ("remember", "message"),
    [
        (lambda seen, y: 0.9 * seen + y.mean(0), "keeps the graph of a step in its buffer seen"),
        (lambda seen, y: torch.cat([seen, y.detach().mean(0)]), r"seen from \[12\] to \[24\]"),
    ],
)
def test_buffers_that_last_for_one_step(config, remember, message):
    with pytest.raises(UserError, match=f"block 'middle' .*{message}"):
        tried(config(lambda: Remembers(remember)))


def test_a_buffer_that_is_replaced(config):
    tried(config(lambda: Remembers(lambda seen, y: 0.9 * seen + y.detach().mean(0))))


class Sparse(nn.Linear):
    """Adds a row of a table."""

    def __init__(self, frozen):
        super().__init__(12, 12)
        self.table = nn.Embedding(3, 12, sparse=True)
        self.table.weight.requires_grad_(not frozen)

    def forward(self, x):
        first = torch.zeros(len(x), dtype=torch.int64, device=x.device)
        return super().forward(x) + self.table(first)


def test_sparse_gradients(config):
    with pytest.raises(UserError, match=r"block 'middle' has sparse gradients \(table\)"):
        tried(config(lambda: Sparse(frozen=False)))
    tried(config(lambda: Sparse(frozen=True)))


class Drifting(nn.Linear):
    """A parameter that nobody trains, which each step in training moves."""

    def __init__(self):
        super().__init__(12, 12)
        self.mean = nn.Parameter(torch.zeros(12), requires_grad=False)

    def forward(self, x):
        y = super().forward(x)
        if self.training:
            with torch.no_grad():
                self.mean.lerp_(y.mean(0), 0.1)
        return y - self.mean


def test_a_frozen_parameter_that_moves(config):
    with pytest.raises(UserError, match="block 'middle' writes to its frozen parameter mean"):
        tried(config(Drifting))
