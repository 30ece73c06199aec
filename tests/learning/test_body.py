"""Activation checkpointing changes memory, and nothing else."""

import pytest
import torch
from torch import nn
from torch._dynamo.utils import counters

from pipeline_local.bench.memory import peak_bytes
from pipeline_local.config import ReconcileConfig
from pipeline_local.errors import UserError
from pipeline_local.learning.body import Body
from pipeline_local.learning.compiler import compile_part
from pipeline_local.learning.contents import Feedback
from pipeline_local.learning.lag_plan import LagPlan
from pipeline_local.learning.module import LocalModule
from pipeline_local.learning.rules import Rules
from pipeline_local.learning.step import Step
from pipeline_local.learning.wire_format import WireFormat


def blocks():
    torch.manual_seed(0)
    return [
        nn.Sequential(
            nn.Conv2d(4, 4, 3, padding=1), nn.BatchNorm2d(4), nn.GELU(), nn.Dropout(0.2)
        ).double()
        for _ in range(3)
    ]


@pytest.mark.parametrize("recompute", [False, True])
def test_ids_that_an_embedding_does_not_have(recompute):
    body = Body([nn.Embedding(7, 4), nn.Linear(4, 4)], recompute)
    body(torch.tensor([[0, 6]]))
    for ids, said in (([0, 7], "0 to 7"), ([-1, 6], "-1 to 6")):
        with pytest.raises(UserError, match=f"must be from 0 to 6, .* 7 rows: got {said};"):
            body(torch.tensor([ids]))


def test_other_wrong_indices_are_not_explained():
    """Of positions, of which there are fewer than ids."""

    class Positions(nn.Module):
        def __init__(self):
            super().__init__()
            self.tokens, self.positions = nn.Embedding(9, 4), nn.Embedding(2, 4)

        def forward(self, ids):
            return self.tokens(ids) + self.positions(torch.arange(ids.shape[1]))

    body = Body([Positions()])
    body(torch.tensor([[8, 8]]))
    with pytest.raises(IndexError):
        body(torch.tensor([[8, 8, 8]]))


def make(estimator, recompute, compile_with=None):
    body = Body(blocks(), recompute)
    head = nn.Sequential(nn.Flatten(), nn.Linear(4 * 64, 5)).double()
    if compile_with:
        body.compile_blocks(backend=compile_with)
        compile_part(head, backend=compile_with)
    settings = ReconcileConfig(weight=0.3, estimator=estimator, every=1)
    lag = LagPlan((Feedback(1),), steps=0)
    rules = Rules(reconcile=settings, wire_format=WireFormat(torch.float64), clip=1.0, lag=lag)
    return LocalModule(1, body, head, lambda p: torch.optim.SGD(p, lr=0.1), rules)


def train(module, microbatches=1, steps=2):
    generator = torch.Generator().manual_seed(1)
    for number in range(steps):
        step = Step(number, 0.1, microbatches, reconcile=True, compare=True)
        for part in range(microbatches):
            x = torch.randn(6, 4, 8, 8, generator=generator, dtype=torch.float64)
            s = torch.randn(6, 4, 8, 8, generator=generator, dtype=torch.float64) / 6
            module(x, torch.arange(6) % 5, step, part)
            module.signal()
            module.receive(s)
            module.learn()
            module.apply_lagged(step, part, s)
        module.update(step)
    return module.state_dict()


@pytest.mark.parametrize("microbatches", [1, 2])
@pytest.mark.parametrize("estimator", ["exact", "finite_difference", "shift"])
def test_recomputing_changes_no_bit(estimator, microbatches):
    """Weights, and running statistics that must not see the second run."""
    plain = train(make(estimator, recompute=False), microbatches)
    again = train(make(estimator, recompute=True), microbatches)
    assert plain.keys() == again.keys()
    assert all(torch.equal(plain[name], again[name]) for name in plain)


def test_recomputing_saves_memory():
    peaks = {}
    for recompute in (False, True):
        module = make("finite_difference", recompute)
        peaks[recompute] = peak_bytes(
            lambda module=module: train(module, steps=1), torch.device("cpu")
        )
    assert peaks[True] < 0.8 * peaks[False]


@pytest.mark.filterwarnings("ignore:The .grad attribute:UserWarning")  # dynamo looks at it
@pytest.mark.parametrize("recompute", [False, True])
@pytest.mark.parametrize("estimator", ["finite_difference", "shift"])
def test_compiled_modules_learn_the_same(estimator, recompute):
    """Through AOTAutograd, whose graphs have no second derivative, but without its code generator:
    its own dropout would draw other masks."""
    plain = train(make(estimator, recompute))
    compiled = train(make(estimator, recompute, compile_with="aot_eager"))
    for name in plain:
        torch.testing.assert_close(plain[name], compiled[name], rtol=1e-6, atol=1e-9)


@pytest.mark.filterwarnings("ignore:The .grad attribute:UserWarning")
def test_more_kinds_of_blocks_than_torch_compiles():
    """It stops at eight graphs, between the two runs of a block, which then save other tensors."""

    class Wide(nn.Sequential):
        """One class, so one cache."""

    parts = [
        Wide(nn.Conv2d(width, width + 1, 1), nn.BatchNorm2d(width + 1), nn.ReLU())
        for width in range(1, 7)
    ]
    body = Body(parts, recompute=True)
    body.compile_blocks(backend="aot_eager")
    counters.clear()
    x = torch.randn(2, 1, 3, 3)
    body(x).sum().backward()
    with torch.no_grad():
        body.eval()(x)
    before = counters["frames"]["total"]
    body.train()(x).sum().backward()
    with torch.no_grad():
        body.eval()(x)
    assert counters["frames"]["total"] == before  # all of it was compiled, and once
    assert counters["frames"]["ok"] == before


@pytest.mark.filterwarnings("ignore:The .grad attribute:UserWarning")
def test_compiled_modules_cannot_differentiate_twice():
    """Which is why the configuration refuses it."""
    with pytest.raises(RuntimeError, match=r"twice|double|create_graph"):
        train(make("exact", recompute=False, compile_with="aot_eager"))


@pytest.mark.filterwarnings("ignore:The .grad attribute:UserWarning")
def test_blocks_of_a_class_share_a_graph():
    """Of one shape, as compiling takes long."""
    torch.compiler.reset()
    counters.clear()
    body = Body([nn.Sequential(nn.Linear(3, 3), nn.GELU()) for _ in range(5)])
    body.compile_blocks(backend="aot_eager")
    body(torch.randn(2, 3)).sum().backward()
    assert counters["stats"]["unique_graphs"] == 2  # torch makes the second one for all others
