"""Distillation against a plain loop over all modules, written out with the formulas of
docs/mathematics.md."""

import pytest
import torch
from torch import nn
from torch.nn import functional

from pipeline_local import seeds
from pipeline_local.config import DistillConfig
from pipeline_local.learning.contents import Distillation
from pipeline_local.learning.distillation import lesson
from pipeline_local.learning.lag_plan import LagPlan
from pipeline_local.learning.module import LocalModule
from pipeline_local.learning.rules import Rules
from pipeline_local.learning.step import LAG, Step
from pipeline_local.learning.tasks import Classification
from pipeline_local.learning.wire_format import WireFormat
from pipeline_local.pipeline.edge import Nowhere
from pipeline_local.pipeline.stage import Stage
from pipeline_local.record.trace import Trace
from pipeline_local.side_effects.untouched import Buffers

COUNT, CLASSES, STEPS, PARTS, SEED, RATE = 4, 5, 24, 2, 7, 0.3
CPU = torch.device("cpu")


def networks():
    """A body and a head with batch norm and dropout for each module."""
    torch.manual_seed(3)

    def head():
        layers = nn.Linear(6, 8), nn.BatchNorm1d(8), nn.Dropout(0.3), nn.Linear(8, CLASSES)
        return nn.Sequential(*layers).double()

    return [(nn.Sequential(nn.Linear(6, 6), nn.Tanh()).double(), head()) for _ in range(COUNT)]


def batch(step, part):
    generator = torch.Generator().manual_seed(100 * step + part)
    x = torch.randn(8, 6, dtype=torch.float64, generator=generator)
    return x, torch.randint(CLASSES, (8,), generator=generator)


class Data:
    """The upstream edge of the first module."""

    def __init__(self):
        self.messages = (batch(step, part) for step in range(STEPS) for part in range(PARTS))

    def recv(self):
        return next(self.messages)


def pipelined(settings):
    """What the modules of a stage learn."""
    plan = LagPlan((Distillation(settings.every, COUNT, settings.teacher == "together"),))
    rules = Rules(SEED, distill=settings, lag=plan, wire_format=WireFormat(torch.float64))
    modules = [
        LocalModule(k, *pair, lambda params: torch.optim.SGD(params, lr=RATE), rules)
        for k, pair in enumerate(networks())
    ]
    stage = Stage(modules, Data(), Nowhere(), Trace())
    for number in range(STEPS):
        stage.train(Step(number, RATE, PARTS))
    assert ["divergence" in module.metrics for module in modules] == [True, True, True, False]
    return [(module.body, module.head) for module in modules]


def outputs(head, y, index, step, part):
    """Of a head, with the dropout mask of a microbatch."""
    seeds.reseed(CPU, SEED, "head", index, step, part)
    return head(y)


def plain(settings):
    """The same, all modules and all steps in one loop."""
    pairs, kept, sums = networks(), {}, {}
    params = [p for pair in pairs for net in pair for p in net.parameters()]
    sgd = torch.optim.SGD(params, lr=RATE)
    for step in range(STEPS):
        sgd.zero_grad()
        for part in range(PARTS):
            x, labels = batch(step, part)
            for k, (body, head) in enumerate(pairs):
                kept[k, step, part] = x = body(x.detach())
                out = outputs(head, x, k, step, part)
                (functional.cross_entropy(out, labels) / PARTS).backward()
                sums[k, step, part] = out.detach().float().log_softmax(1).double()
            for k, (_, head) in enumerate(pairs[:-1]):
                earlier = step - (5 * (COUNT - 1 - k) - 1)
                if earlier < 0 or earlier % settings.every:
                    continue
                with Buffers(head).again():
                    out = outputs(head, kept[k, earlier, part].detach(), k, earlier, part)
                wanted = sums[k + 1, earlier, part]
                heads = 1
                if settings.teacher == "together":
                    wanted = wanted + out.detach().float().log_softmax(1)
                    heads = COUNT - k
                sums[k, earlier, part] = wanted
                p = (wanted / heads / settings.temperature).softmax(1)
                q = (out / settings.temperature).softmax(1)
                kl = (p * (p.log() - q.log())).sum(1).mean() * settings.temperature**2
                (settings.weight * settings.every * kl / PARTS).backward()
        sgd.step()
    return pairs


@pytest.mark.parametrize("teacher", ["together", "last"])
@pytest.mark.parametrize("every", [1, 3])
def test_heads_follow_the_formulas(teacher, every):
    settings = DistillConfig(weight=0.4, teacher=teacher, temperature=1.5, every=every)
    expected = plain(settings)
    for ours, theirs in zip(pipelined(settings), expected, strict=True):
        for net, other in zip(ours, theirs, strict=True):
            for name, tensor in net.state_dict().items():
                wanted = other.state_dict()[name]
                torch.testing.assert_close(tensor, wanted, rtol=1e-6, atol=1e-7)
    without = plain(DistillConfig(weight=0.0, every=every))
    heads = zip(expected[:-1], without[:-1], strict=True)
    assert all((a[1][0].weight - b[1][0].weight).abs().max() > 1e-3 for a, b in heads)


def test_a_teacher_is_a_constant():
    own = torch.randn(4, CLASSES, requires_grad=True)
    later = torch.randn(4, CLASSES).log_softmax(1)
    settings = DistillConfig(weight=0.5, every=4)
    taught = lesson(settings, Classification(CLASSES), own, later, 2)
    assert not taught.summed.requires_grad
    torch.testing.assert_close(taught.loss, 2 * taught.divergence)
    torch.testing.assert_close(taught.summed, later + own.detach().log_softmax(1))


@pytest.mark.parametrize("lag", [LAG, 1])
def test_a_batch_waits_for_its_hops(lag):
    """What the last module begins in step 0 reaches the first one lag + 1 steps a module later."""
    plan = LagPlan((Distillation(every=20, num_modules=4, together=True, lag=lag),), lag)
    steps = range(20)
    applied = [[n for n in steps if plan.applied(k, n, 0, 1)] for k in range(4)]
    assert applied == [[3 * lag + 2], [2 * lag + 1], [lag], []]
    sent = [[n for n in steps if plan.sent(k, n, 0, 1)] for k in range(1, 4)]
    assert sent == [[2 * lag + 2], [lag + 1], [0]]
    assert [plan.last_use(k, 0) for k in range(4)] == [3 * lag + 2, 2 * lag + 1, lag, -1]
    assert plan.last_use(0, 1) == -1, "its batch is not distilled"
