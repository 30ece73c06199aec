"""A module with an information term, against the mathematics written out with plain autograd."""

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional

from pipeline_local.config import ReconcileConfig
from pipeline_local.learning.contents import Feedback
from pipeline_local.learning.information import Ends, InformedHead
from pipeline_local.learning.information.contrast import contrast
from pipeline_local.learning.information.reconstruction import reconstruction
from pipeline_local.learning.lag_plan import LagPlan
from pipeline_local.learning.module import LocalModule
from pipeline_local.learning.rules import Rules
from pipeline_local.learning.spec import Spec
from pipeline_local.learning.step import LAG, Step
from pipeline_local.learning.wire_format import WireFormat

TASK_WEIGHT, WEIGHT, LAMBDA = 0.5, 0.8, 0.3
B, C, SIDE = 6, 4, 5
ENDS = Ends(
    "NCHW", (C, SIDE, SIDE), "NCHW", (3, SIDE, SIDE), torch.float64, Spec((B,), torch.int64)
)
TERMS = {"reconstruction": reconstruction, "contrast": contrast}


def plain_sgd(params):
    return torch.optim.SGD(params, lr=1.0)


def make(name, estimator="exact", lag=LagPlan(), **reconcile):  # noqa: B008 (immutable)
    """GELUs and no ReLUs: finite differences are to be close."""
    torch.manual_seed(3)
    body = nn.Sequential(nn.Conv2d(3, C, 3, padding=1), nn.BatchNorm2d(C), nn.GELU())
    head = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(C, 5))
    term = TERMS[name](ENDS)
    for layers in term.modules():
        for key, layer in layers.named_children():
            if isinstance(layer, nn.ReLU):
                setattr(layers, key, nn.GELU())
    informed = InformedHead(head, term, TASK_WEIGHT, WEIGHT)
    own = {"every": 1, "distance": "squared", "step": 1e-6, **reconcile}
    settings = ReconcileConfig(weight=LAMBDA, estimator=estimator, **own)
    rules = Rules(reconcile=settings, wire_format=WireFormat(torch.float64), lag=lag)
    return LocalModule(1, body.double(), informed.double(), plain_sgd, rules)


def batch(seed=0):
    g = torch.Generator().manual_seed(seed)
    x = torch.randn(B, 3, SIDE, SIDE, generator=g, dtype=torch.float64)
    s = torch.randn(B, 3, SIDE, SIDE, generator=g, dtype=torch.float64) / 100
    return x, torch.randint(3, (B,), generator=g), s


def loss_of(name, head, y, labels, target):
    """The local loss by its definition; the target is a constant."""
    task = -head.head(y).log_softmax(1)[range(len(y)), labels].mean()
    prediction = head.information(y)
    if name == "reconstruction":
        target = target.detach()
        means = target.mean((0, 2, 3), keepdim=True)
        term = ((prediction - target) ** 2).mean() / (((target - means) ** 2).mean() + 1e-6)
    else:
        cosines = functional.cosine_similarity(prediction[:, None], prediction, dim=2) / 0.07
        others = ~torch.eye(len(y), dtype=torch.bool)
        same = others & (labels[:, None] == labels)
        total = (cosines.exp() * others).sum(1, keepdim=True)
        term = -((cosines.exp() / total).log() * same).sum(1) / same.sum(1).clamp_min(1)
        term = term.mean()
    return TASK_WEIGHT * task + WEIGHT * term, term


def one_step(module, x, labels, s):
    y = module(x, labels, Step(0, lr=1.0, reconcile=True, compare=True, log=True))
    signal = module.signal()
    module.receive(s)
    module.learn()
    module.update(Step(0, lr=1.0))
    return y, signal


def assert_moved(module, reference, rtol=1e-9, atol=1e-11):
    for moved, p in zip(module.parameters(), reference.parameters(), strict=True):
        torch.testing.assert_close(moved, p - p.grad, rtol=rtol, atol=atol)
    for name, value in reference.named_buffers():
        torch.testing.assert_close(dict(module.named_buffers())[name], value)


@pytest.mark.parametrize("name", TERMS)
def test_formula(name):
    """theta, head and term follow d(l + lambda D), the signal is that of the whole local loss."""
    module, reference = make(name), make(name)
    x, labels, s = batch()
    leaf = x.clone().requires_grad_()
    activations = reference.body(leaf)
    loss, term = loss_of(name, reference.head, activations, labels, x)
    (g,) = torch.autograd.grad(loss, leaf, create_graph=True)
    (expected,) = torch.autograd.grad(loss, activations, retain_graph=True)
    (loss + LAMBDA * B * (g - s).square().sum()).backward()

    y, signal = one_step(module, x, labels, s)
    torch.testing.assert_close(y, activations.detach())
    torch.testing.assert_close(signal, expected)
    assert_moved(module, reference)
    assert module.metrics["loss"].item() == pytest.approx(loss.item())
    assert module.metrics["information"].item() == pytest.approx(term.item())


@pytest.mark.parametrize("name", TERMS)
def test_formula_of_shift(name):
    """The input moves, and what is to be reconstructed stays."""
    module, reference = make(name, "shift"), make(name)
    x, labels, s = batch()
    leaf = x.clone().requires_grad_()
    loss, _ = loss_of(name, reference.head, reference.body(leaf), labels, x)
    (g,) = torch.autograd.grad(loss, leaf)
    before = copy.deepcopy(dict(reference.named_buffers()))
    v = LAMBDA * 2 * B * (g - s)
    moved = x + v * min(1.0, 0.3 * float(x.norm() / v.norm()))
    loss_of(name, reference.head, reference.body(moved), labels, x)[0].backward()
    for buffer_name, value in before.items():
        dict(reference.named_buffers())[buffer_name].copy_(value)

    one_step(module, x.clone(), labels, s)
    assert_moved(module, reference)


@pytest.mark.parametrize("fraction", [1.0, 0.5])
@pytest.mark.parametrize("name", TERMS)
def test_finite_differences_agree_with_exact(name, fraction):
    """Also on a part of the batch, with its part of the targets."""
    exact, finite = (
        make(name, estimator, fraction=fraction) for estimator in ("exact", "finite_difference")
    )
    for module in (exact, finite):
        one_step(module, *batch())
    for a, b in zip(exact.parameters(), finite.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("name", TERMS)
def test_feedback_trains_head_and_term(name):
    """Four steps later, with the input of then: the term is a part of the signal."""
    module = make(name, lag=LagPlan((Feedback(2 * LAG),)))
    reference = make(name)
    (x, labels, _), (later, later_labels, _) = batch(), batch(1)
    g = torch.Generator().manual_seed(5)
    feedback = torch.randn(B, C, SIDE, SIDE, generator=g, dtype=torch.float64) / 100
    send = Step(0, lr=0.0)
    y = module(x, labels, send)
    module.signal()
    module.learn()
    module.update(send)
    apply = Step(LAG, lr=1.0)
    module(later, later_labels, apply)
    module.signal()
    module.learn()
    module.apply_lagged(apply, 0, feedback)
    module.update(apply)

    reference.body(x)  # the statistics of its batch norm
    y = y.requires_grad_()
    loss, _ = loss_of(name, reference.head, y, labels, x)
    (s,) = torch.autograd.grad(loss, y, create_graph=True)
    (LAMBDA * B * (s - feedback).square().sum()).backward()
    loss_of(name, reference.head, reference.body(later), later_labels, later)[0].backward()
    assert_moved(module, reference)


def test_a_head_predicts_what_it_would_alone():
    module = make("reconstruction")
    x, _, _ = batch()
    module.eval()
    y, outputs, _ = module.evaluate(x)
    assert torch.equal(outputs, module.head.head(y))
    assert "information" not in module.metrics
