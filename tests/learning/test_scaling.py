"""Loss scaling in a module: what its engine gets, and what its neighbours get."""

import copy

import pytest
import torch
from torch import nn

from pipeline_local.config import DistillConfig, ReconcileConfig
from pipeline_local.learning.body import Body
from pipeline_local.learning.module import LocalModule
from pipeline_local.learning.rules import Rules
from pipeline_local.learning.scaling import Scaling
from pipeline_local.learning.step import Step
from pipeline_local.learning.tasks import Classification
from pipeline_local.learning.wire_format import WireFormat

WIDTH, CLASSES, SIZE = 12, 4, 8
HALF = WireFormat(half=True)
RECONCILED = Step(3, 0.1, reconcile=True, compare=True, log=True)


def network():
    torch.manual_seed(0)
    body = Body([nn.Linear(WIDTH, WIDTH), nn.GELU(), nn.LayerNorm(WIDTH)])
    return body, nn.Linear(WIDTH, CLASSES)


def batch():
    draw = torch.Generator().manual_seed(1)
    x, signal = (torch.randn(SIZE, WIDTH, generator=draw) for _ in range(2))
    return x, signal / SIZE, torch.arange(SIZE) % CLASSES


def module_of(scale, parts=None, **settings):
    """Module 2 in float16 with this scale; None: in float32."""
    body, head = copy.deepcopy(parts or network())
    rules = Rules(
        task=Classification(CLASSES),
        reconcile=ReconcileConfig(weight=0.5, **settings),
        distill=DistillConfig(weight=0.5),
        wire_format=HALF if scale else WireFormat(),
    )
    module = LocalModule(1, body, head, lambda p: torch.optim.SGD(p, lr=0.1), rules)
    if scale:
        module.half()
        module.engine.scale = scale
        module._scale = Scaling(module.engine, True)
    return module


def step(module, of=RECONCILED, signal=None):
    """The signal, the loss's gradients without the scale, and that at the input."""
    x, given, labels = batch()
    module(x, labels, of)
    sent = module.signal()
    module.receive((given if signal is None else signal) if of.compare else None)
    module.learn()
    return sent, [g.float() / module.engine.scale for g in module.gradients]


def near(left, right, share=0.01):
    return all((a - b).norm() <= share * b.norm() for a, b in zip(left, right, strict=True))


ESTIMATORS = {
    "shift": {},
    "of a part": {"estimator": "finite_difference", "fraction": 0.5, "step": 0.3},
    "difference": {"estimator": "finite_difference", "step": 0.3},
}


@pytest.mark.parametrize("name", ESTIMATORS)
def test_gradients_are_those_of_float32_at_any_scale(name):
    """Rounding of float16 is divided by the step of a finite difference."""
    settings = ESTIMATORS[name]
    signal, gradients = step(module_of(None, **settings))
    share = 0.01 if name == "shift" else 0.03
    for scale in (1.0, 1024.0, 1000.0):
        sent, found = step(module_of(scale, **settings))
        assert near([sent], [signal])
        assert near(found, gradients, share), scale


def test_neighbours_see_no_scale():
    """Static 1 against 1024: the same messages, of float32, to float16's rounding."""
    found = []
    for scale in (1.0, 1024.0):
        module = module_of(scale)
        x, given, labels = batch()
        module(x, labels, RECONCILED)
        sent = module.signal()
        module.receive(given)
        first = module._body_backward()
        comparison = vars(module._comparison(first.input, given))
        found.append([sent, first.input, *comparison.values()])
    for one, other in zip(*found, strict=True):
        assert one.dtype == other.dtype == torch.float32
        assert torch.allclose(one, other, rtol=2e-3, atol=1e-6)
    assert found[0][0].abs().max() > 1e-3


def confident():
    """Heads are so sure that what is left of each gradient is nothing in float16."""
    body, head = Body([nn.Linear(WIDTH, WIDTH)]), nn.Linear(WIDTH, CLASSES)
    nn.init.eye_(body[0].weight)
    nn.init.zeros_(body[0].bias)
    nn.init.eye_(head.weight)
    nn.init.zeros_(head.bias)
    labels = torch.arange(SIZE) % CLASSES
    x = torch.zeros(SIZE, WIDTH)
    x[torch.arange(SIZE), labels] = 17.0
    return (body, head), x, labels


def gradients_of(scale):
    parts, x, labels = confident()
    module = module_of(scale, parts)
    module(x, labels, Step(0, 0.1, compare=True))
    sent = module.signal()
    first = module._body_backward()
    params = [gradient.float() / module.engine.scale for gradient in first.params]
    return [sent, first.input, *params]


def test_what_underflows_survives():
    expected = gradients_of(None)
    assert 0 < expected[0].abs().max() < 2e-8, "less than half of float16's least number"
    assert not any(tensor.any() for tensor in gradients_of(1.0))
    assert near(gradients_of(2.0**16), expected)


@pytest.mark.parametrize("name", ESTIMATORS)
def test_a_spoilt_signal_changes_nothing(name):
    """Its sender leaves out its own step; this module learns as without the signal."""
    settings = ESTIMATORS[name]
    _, plain = step(module_of(1024.0), Step(3, 0.1))
    spoilt = batch()[1]
    spoilt[2, 3] = torch.inf
    module = module_of(1024.0, **settings)
    _, found = step(module, signal=spoilt)
    assert near(found, plain, 1e-3)
    assert not module.metrics["cosine"].isfinite(), "a row of metrics says so"
    _, found = step(module_of(None, **settings), signal=spoilt)
    assert not all(g.isfinite().all() for g in found), "as ever without a scale"


def test_feedback_and_lessons_are_scaled():
    for kind in ("feedback", "lesson"):
        found = []
        for scale in (None, 1024.0):
            module = module_of(scale)
            x, given, labels = batch()
            kept = (0, 0, (x, labels))
            if kind == "feedback":
                module.apply_feedback(Step(4, 0.1), kept, given)
            else:
                module.imitate(Step(4, 0.1), kept, given[:, :CLASSES], 1)
            there = [g for g in module.gradients if g is not None]
            found.append([g.float() / module.engine.scale for g in there])
        assert len(found[0]) == 2
        assert all(g.any() for g in found[0])
        assert near(*reversed(found), share=0.03), kind


def test_spoilt_feedback_changes_nothing():
    x, given, labels = batch()
    given[0, 0] = torch.nan
    module = module_of(1024.0)
    module.apply_feedback(Step(4, 0.1), (0, 0, (x, labels)), given)
    there = [g for g in module.gradients if g is not None]
    assert len(there) == 2
    assert not any(g.any() for g in there)


def test_a_scale_that_is_too_large_reaches_the_engine():
    module = module_of(2.0**40)
    x, given, labels = batch()
    module(x, labels, RECONCILED)
    assert not module.signal().isfinite().all()
    module.receive(given)
    module.learn()
    assert not all(g.isfinite().all() for g in module.gradients)
