"""LocalModule against design section 1, written out independently; and isolation."""

import pytest
import torch
from torch import nn
from torch.nn import functional
from torch.nn.attention import SDPBackend, sdpa_kernel

from pipeline_local.config import OptimizerConfig, ReconcileConfig
from pipeline_local.engines import optimizer
from pipeline_local.layout import IGNORE_LABEL
from pipeline_local.learning.contents import Feedback
from pipeline_local.learning.lag_plan import LagPlan
from pipeline_local.learning.module import LocalModule
from pipeline_local.learning.rules import Rules
from pipeline_local.learning.step import LAG, Step
from pipeline_local.learning.tasks import Classification
from pipeline_local.learning.wire_format import WireFormat


def conv_module(norm, shortcut=False):
    class Block(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv1, self.norm1 = nn.Conv2d(4, 4, 3, padding=1), norm(4)
            self.conv2, self.norm2 = nn.Conv2d(4, 4, 3, padding=1), norm(4)

        def forward(self, x):
            y = self.norm2(self.conv2(functional.gelu(self.norm1(self.conv1(x)))))
            return functional.gelu(y + x if shortcut else y)

    body = nn.Sequential(Block(), Block())
    return body, nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 5)), (4, 6, 6)


def transformer_module():
    layer = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, batch_first=True, norm_first=True)
    return nn.Sequential(layer), nn.Sequential(nn.Flatten(), nn.Linear(40, 5)), (5, 8)


class Sum(nn.Module):
    """Its gradient is one number for all positions."""

    def forward(self, x):
        return x.sum((2, 3))


ARCHITECTURES = {
    "sum over positions": lambda: (
        nn.Sequential(Sum(), nn.Linear(4, 9), nn.Tanh()),
        nn.Linear(9, 5),
        (4, 2, 2),
    ),
    "mlp": lambda: (nn.Sequential(nn.Linear(7, 9), nn.Tanh()), nn.Linear(9, 5), (7,)),
    "conv": lambda: conv_module(lambda _: nn.Identity()),
    "batch norm": lambda: conv_module(nn.BatchNorm2d),
    "residual with batch norm": lambda: conv_module(nn.BatchNorm2d, shortcut=True),
    "transformer": transformer_module,
}


def plain_sgd(params):
    return torch.optim.SGD(params, lr=1.0)


def make(architecture, weight=0.0, index=1, **rules):
    torch.manual_seed(3)
    body, head, shape = ARCHITECTURES[architecture]()
    own = {"every": 1, "distance": "squared", **rules.pop("reconcile", {"estimator": "exact"})}
    settings = ReconcileConfig(weight=weight, **own)
    rules = Rules(reconcile=settings, wire_format=WireFormat(torch.float64), **rules)
    return LocalModule(index, body.double(), head.double(), plain_sgd, rules), shape


def batch(shape, size=6, seed=0):
    g = torch.Generator().manual_seed(seed)
    x = torch.randn(size, *shape, generator=g, dtype=torch.float64)
    s = torch.randn(size, *shape, generator=g, dtype=torch.float64) / size
    return x, torch.randint(5, (size,), generator=g), s


def one_step(module, x, labels, s, **step):
    step = Step(0, lr=1.0, **{"reconcile": True, "compare": True, "log": True, **step})
    y = module(x, labels, step)
    signal = module.signal()
    module.receive(s)
    module.learn()
    module.update(step)
    return y, signal


def weights(module):
    return [p.detach().clone() for p in module.parameters()]


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_formula(architecture):
    """theta - d(l + lambda D)/d theta, computed from the definitions with plain autograd."""
    weight = 0.7
    module, shape = make(architecture, weight)
    reference, _ = make(architecture, weight)
    x, labels, s = batch(shape)

    leaf = x.clone().requires_grad_()
    with sdpa_kernel(SDPBackend.MATH):  # the only attention with a second derivative
        activations = reference.body(leaf)
    logits = reference.head(activations)
    loss = -logits.log_softmax(1)[range(len(x)), labels].mean()
    (g,) = torch.autograd.grad(loss, leaf, create_graph=True)
    (expected_signal,) = torch.autograd.grad(loss, activations, retain_graph=True)
    discord = (len(x) * (g - s)).flatten(1).square().sum(1).mean()
    (loss + weight * discord).backward()

    y, signal = one_step(module, x, labels, s)
    torch.testing.assert_close(y, activations.detach())
    torch.testing.assert_close(signal, expected_signal)
    for moved, p in zip(module.parameters(), reference.parameters(), strict=True):
        torch.testing.assert_close(moved, p - p.grad, rtol=1e-9, atol=1e-11)
    for name, value in reference.named_buffers():
        torch.testing.assert_close(dict(module.named_buffers())[name], value)
    assert module.metrics["loss"].item() == pytest.approx(loss.item())
    assert module.metrics["discord"].item() == pytest.approx(discord.item())


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_formula_of_shift(architecture):
    """theta - d l / d theta at x + lambda dD/dg, what is seen of the module being that at x."""
    weight = 0.05
    own = {"reconcile": {"estimator": "shift"}}
    module, shape = make(architecture, weight, **own)
    reference, _ = make(architecture, weight)
    x, labels, s = batch(shape)

    leaf = x.clone().requires_grad_()
    activations = reference.body(leaf)
    loss = functional.cross_entropy(reference.head(activations), labels)
    g, expected_signal = torch.autograd.grad(loss, [leaf, activations])
    statistics = {name: value.clone() for name, value in reference.named_buffers()}
    moved = x + weight * 2 * len(x) * (g - s)
    functional.cross_entropy(reference.head(reference.body(moved)), labels).backward()

    y, signal = one_step(module, x, labels, s)
    torch.testing.assert_close(y, activations.detach())
    torch.testing.assert_close(signal, expected_signal)
    for learned, p in zip(module.parameters(), reference.parameters(), strict=True):
        torch.testing.assert_close(learned, p - p.grad, rtol=1e-9, atol=1e-11)
    for name, value in module.named_buffers():
        torch.testing.assert_close(value, statistics[name])
    assert module.metrics["loss"].item() == pytest.approx(loss.item())
    assert module.metrics["discord"].item() == pytest.approx(
        (len(x) * (g - s)).flatten(1).square().sum(1).mean().item()
    )


@pytest.mark.parametrize("estimator", ["exact", "finite_difference", "shift"])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_zero_weight_is_plain_local_learning(architecture, estimator):
    """Bit for bit, though the signal is there."""
    settings = {"reconcile": {"estimator": estimator}}
    compared, shape = make(architecture, 0.0, **settings)
    plain, _ = make(architecture, 0.0, **settings)
    x, labels, s = batch(shape)
    one_step(compared, x, labels, s, reconcile=False)
    one_step(plain, x, labels, None, reconcile=False, compare=False)
    for a, b in zip(weights(compared), weights(plain), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("estimator", ["exact", "finite_difference", "shift"])
def test_isolation(estimator):
    """Nothing that a module gives or takes leads a gradient into another module."""
    settings = {"reconcile": {"estimator": estimator}}
    up, shape = make("batch norm", 1.0, index=0, **settings)
    down, _ = make("batch norm", 1.0, index=1, **settings)
    before = weights(up)
    x, labels, _ = batch(shape)
    step = Step(0, lr=1.0, reconcile=True, compare=True)
    y = up(x, labels, step)
    s = up.signal()
    assert not y.requires_grad
    assert not s.requires_grad
    down(y, labels, step)
    down.signal()
    down.receive(s)
    down.learn()
    down.update(step)
    assert all(p.grad is None for p in up.parameters())
    assert all(torch.equal(a, b) for a, b in zip(weights(up), before, strict=True))
    assert any((a != b).any() for a, b in zip(weights(down), before, strict=True))


def test_first_module_has_no_discord():
    module, shape = make("conv", 1.0, index=0)
    x, labels, _ = batch(shape)
    one_step(module, x, labels, None)
    assert "discord" not in module.metrics


@pytest.mark.parametrize("architecture", ["mlp", "transformer"])
def test_microbatches_average(architecture):
    """Two halves, one update: the gradient is the mean of the halves' gradients."""
    x, labels, s = batch(ARCHITECTURES[architecture]()[2], size=8)
    halves = []
    for part in (slice(0, 4), slice(4, 8)):
        module, _ = make(architecture, 0.5)
        before = weights(module)
        one_step(module, x[part], labels[part], s[part])
        halves.append([b - a for a, b in zip(weights(module), before, strict=True)])
    module, _ = make(architecture, 0.5)
    step = Step(0, lr=1.0, microbatches=2, reconcile=True, compare=True)
    for i, part in enumerate((slice(0, 4), slice(4, 8))):
        module(x[part], labels[part], step, i)
        module.signal()
        module.receive(s[part])
        module.learn()
    module.update(step)
    for b, a, h0, h1 in zip(before, weights(module), *halves, strict=True):
        torch.testing.assert_close(b - a, (h0 + h1) / 2)


def test_every_scales_the_weight():
    x, labels, s = batch((7,))
    results = []
    for weight, every in ((0.6, 1), (0.2, 3)):
        module, _ = make("mlp", weight, reconcile={"estimator": "exact", "every": every})
        one_step(module, x, labels, s)
        results.append(weights(module))
    for a, b in zip(*results, strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize("estimator", ["exact", "finite_difference", "shift"])
def test_fraction_is_unbiased_without_batch_norm(estimator):
    """The mean over many random halves approaches the gradient on the whole batch."""
    x, labels, s = batch((7,), size=8)
    size = len(x)
    weight = 1e-4 if estimator == "shift" else 1.0  # correct to first order in it

    def added(fraction, number):
        settings = {"estimator": estimator, "fraction": fraction, "step": 1e-4}
        module, _ = make("mlp", weight, reconcile=settings)
        plain, _ = make("mlp", 0.0)
        for m in (module, plain):
            step = Step(number, 1.0, reconcile=m is module, compare=True)
            m(x, labels, step)
            m.signal()
            m.receive(s)
            m.learn()
            m.update(step)
        pairs = zip(weights(module), weights(plain), strict=True)
        return torch.cat([(b - a).flatten() for a, b in pairs]) / weight

    whole = added(1.0, 0)
    half = torch.stack([added(0.5, n) for n in range(200)])
    assert (half[0] - half[1]).abs().max() > 1e-6, "every step draws anew"
    spread = half.std(0).norm() / 200**0.5
    assert (half.mean(0) - whole).norm() < 4 * spread
    assert size == 8


@pytest.mark.parametrize("estimator", ["exact", "finite_difference", "shift"])
def test_reconciling_leaves_batch_norm_statistics_alone(estimator):
    x, labels, s = batch((4, 6, 6))
    settings = {"reconcile": {"estimator": estimator}}
    buffers = []
    for weight in (0.0, 1.0):
        module, _ = make("batch norm", weight, **settings)
        one_step(module, x, labels, s, reconcile=weight > 0)
        buffers.append(dict(module.named_buffers()))
        assert all(m.momentum == 0.1 for m in module.modules() if hasattr(m, "running_mean"))
    for name in buffers[0]:
        assert torch.equal(buffers[0][name], buffers[1][name]), name


def test_a_second_pass_draws_the_same_dropout_masks(monkeypatch):
    """With other masks, the difference quotient would be of the order of 1 / step."""

    def with_dropout():
        body = nn.Sequential(nn.Linear(7, 64), nn.Dropout(0.5), nn.Tanh(), nn.Linear(64, 9))
        return body, nn.Sequential(nn.Dropout(0.3), nn.Linear(9, 5)), (7,)

    monkeypatch.setitem(ARCHITECTURES, "dropout", with_dropout)
    x, labels, s = batch((7,))
    moved = []
    for settings in ({"estimator": "exact"}, {"estimator": "finite_difference", "step": 1e-5}):
        module, _ = make("dropout", 1.0, reconcile=settings)
        one_step(module, x, labels, s)
        moved.append(weights(module))
    for a, b in zip(*moved, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-4)

    shifted, _ = make("dropout", 1e-9, reconcile={"estimator": "shift"})
    plain, _ = make("dropout", 0.0)
    one_step(shifted, x, labels, s)
    one_step(plain, x, labels, s, reconcile=False)
    for a, b in zip(weights(shifted), weights(plain), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-7)


def test_dropout_is_a_function_of_seed_module_step_and_microbatch():
    x = torch.ones(4, 50, dtype=torch.float64)
    labels = torch.zeros(4, dtype=torch.int64)

    def output(seed=0, index=1, number=0, microbatch=0):
        rules = Rules(seed=seed, wire_format=WireFormat(torch.float64))
        body, head = nn.Dropout(0.5), nn.Linear(50, 5).double()
        module = LocalModule(index, body, head, plain_sgd, rules)
        torch.manual_seed(torch.seed())
        return module(x, labels, Step(number, 1.0, microbatches=2), microbatch)

    first = output()
    assert torch.equal(first, output())
    for other in ({"seed": 1}, {"index": 2}, {"number": 1}, {"microbatch": 1}):
        assert not torch.equal(first, output(**other)), other


def test_soft_targets_and_label_smoothing():
    x, labels, s = batch((7,))
    hard, _ = make("mlp", 0.5, task=Classification(5, label_smoothing=0.1))
    soft, _ = make("mlp", 0.5)
    targets = functional.one_hot(labels, 5).double() * 0.9 + 0.1 / 5
    one_step(hard, x, labels, s)
    one_step(soft, x, targets, s)
    for a, b in zip(weights(hard), weights(soft), strict=True):
        torch.testing.assert_close(a, b)
    assert torch.equal(hard.metrics["accuracy"], soft.metrics["accuracy"])


def test_clipping_bounds_the_modules_gradient():
    x, labels, s = batch((7,))
    module, _ = make("mlp", 0.0, clip=0.01)
    before = weights(module)
    one_step(module, x, labels, s, reconcile=False)
    moved = torch.cat([(a - b).flatten() for a, b in zip(weights(module), before, strict=True)])
    assert moved.norm().item() == pytest.approx(0.01, rel=1e-4)
    assert module.metrics["gradient_norm"] > 0.01


@pytest.mark.parametrize("statistics", [nn.BatchNorm1d, nn.InstanceNorm1d])
def test_no_norm_sees_padding(statistics):
    """Without running statistics outputs depend on the whole batch."""
    torch.manual_seed(0)
    norm = statistics(3, track_running_stats=False)
    shape = (3,) if statistics is nn.BatchNorm1d else (3, 4)
    body, head = nn.Sequential(norm, nn.Flatten()), nn.Linear(shape[0] * len(shape) ** 2, 5)
    module = LocalModule(0, body, head, torch.optim.SGD, Rules(task=Classification(5)))
    module.eval()
    x, labels, _ = (tensor.float() for tensor in batch(shape, size=6))
    labels = labels.long()
    labels[4:] = IGNORE_LABEL
    found = module.evaluate(x, torch.zeros(6, 5), samples=4)
    own = module.evaluate(x[:4], torch.zeros(4, 5))
    for tensor, alone in zip(found, own, strict=True):
        assert torch.equal(tensor[:4], alone)
        assert not tensor[4:].any()
    score, own_score = (
        module.score(*tensors[1:], labels[: len(tensors[0])], 4) for tensors in (found, own)
    )
    assert [score.loss, score.score, score.count] == [own_score.loss, own_score.score, 4]


def test_evaluation_ignores_padding():
    module, shape = make("batch norm")
    module.eval()
    x, labels, _ = batch(shape, size=6)
    labels[4:] = IGNORE_LABEL
    padded, cut = (
        module.score(*module.evaluate(x[:size])[1:], labels[:size], size) for size in (6, 4)
    )
    assert int(padded.count) == 4
    torch.testing.assert_close(padded.loss, cut.loss)
    assert padded.score == cut.score


def test_heads_together():
    """The product of their probabilities decides."""
    rules, summed, scores = Rules(wire_format=WireFormat(torch.float64)), None, []
    labels = torch.tensor([0, 1])
    for logits in ([[9.0, 8.0], [3.0, 1.0]], [[0.0, 0.5], [-1.0, 5.0]], [[7.0, 2.0], [0.0, 0.0]]):
        weight = torch.tensor(logits, dtype=torch.float64).T
        head = nn.Linear(2, 2, bias=False)
        module = LocalModule(len(scores), nn.Identity(), head, plain_sgd, rules)
        module.head.weight.data = weight.contiguous()
        _, outputs, summed = module.evaluate(torch.eye(2, dtype=torch.float64), summed)
        scores.append(module.score(outputs, summed, labels, 2))
    assert [int(score.score) for score in scores] == [1, 1, 1]
    assert [int(score.ensemble) for score in scores] == [1, 2, 2]
    product = torch.tensor([0.731 * 0.378 * 0.993, 0.269 * 0.622 * 0.007])
    expected = product / product.sum()
    torch.testing.assert_close(summed[0].softmax(0), expected, atol=1e-3, rtol=0)


@pytest.mark.parametrize("estimator", ["exact", "finite_difference", "shift"])
@pytest.mark.parametrize("index", [0, 1])
@pytest.mark.parametrize("frozen", ["body", "part of the body", "head"])
def test_frozen_parameters_stay_as_they_are(frozen, index, estimator):
    torch.manual_seed(3)
    body = nn.Sequential(nn.Linear(7, 9), nn.Tanh(), nn.Linear(9, 9)).double()
    head = nn.Linear(9, 5).double()
    target = {"body": body, "part of the body": body[0], "head": head}[frozen]
    target.requires_grad_(False)
    settings = ReconcileConfig(weight=0.5, estimator=estimator, every=1)
    rules = Rules(reconcile=settings, wire_format=WireFormat(torch.float64))
    module = LocalModule(index, body, head, plain_sgd, rules)
    fixed = [p.clone() for p in target.parameters()]
    free = [p for p in module.parameters() if p.requires_grad]
    before = [p.detach().clone() for p in free]
    x, labels, s = batch((7,))
    one_step(module, x, labels, s if index else None)
    assert all(torch.equal(a, b) for a, b in zip(fixed, target.parameters(), strict=True))
    assert all((a != b).any() for a, b in zip(before, free, strict=True))


class Skipped(nn.Linear):
    """Hands on its input, as LayerDrop does in some steps."""

    def forward(self, x):
        return x


class WithoutGradients(nn.Linear):
    @torch.no_grad()
    def forward(self, x):
        return super().forward(x)


@pytest.mark.parametrize("estimator", ["exact", "finite_difference", "shift"])
@pytest.mark.parametrize("compare", [False, True])
@pytest.mark.parametrize("index", [0, 1])
@pytest.mark.parametrize("kind", [Skipped, WithoutGradients])
def test_a_body_that_takes_no_part_is_left_alone(kind, index, compare, estimator):
    torch.manual_seed(3)
    body, head = nn.Sequential(kind(7, 7)).double(), nn.Linear(7, 5).double()
    settings = ReconcileConfig(weight=0.5, estimator=estimator, every=1)
    rules = Rules(reconcile=settings, wire_format=WireFormat(torch.float64))
    config = OptimizerConfig(name="sgd", lr=0.1, weight_decay=0.1)
    module = LocalModule(index, body, head, lambda p: optimizer.build(config, p), rules)
    before = weights(module)
    x, labels, s = batch((7,))
    theirs = s if index and compare else None
    one_step(module, x, labels, theirs, compare=compare, reconcile=theirs is not None)
    after = weights(module)
    assert all(torch.equal(a, b) for a, b in zip(before[:2], after[:2], strict=True))
    assert all((a != b).any() for a, b in zip(before[2:], after[2:], strict=True))


def test_the_input_gradient_of_a_body_without_gradients_is_zero():
    rules = Rules(wire_format=WireFormat(torch.float64), lag=LagPlan((Feedback(1),)))
    body, head = WithoutGradients(7, 7).double(), nn.Linear(7, 5).double()
    module = LocalModule(1, body, head, plain_sgd, rules)
    x, labels, _ = batch((7,))
    module(x, labels, Step(0, lr=0.1))
    module.signal()
    (sent,) = module.learn()
    assert not sent.any()


@pytest.mark.parametrize("body", [nn.Identity(), nn.Unflatten(1, (7, 1))])
def test_a_sent_signal_is_never_written(body):
    """Where the body only reshapes, the input gradient is the signal's own memory."""
    head = nn.Sequential(nn.Flatten(), nn.Linear(7, 5)).double()
    settings = ReconcileConfig(weight=0.5, every=1)
    rules = Rules(reconcile=settings, wire_format=WireFormat(torch.float64))
    module = LocalModule(1, body, head, plain_sgd, rules)
    x, labels, s = batch((7,))
    step = Step(0, lr=0.1, reconcile=True, compare=True)
    module(x, labels, step)
    sent = module.signal()
    before, theirs = sent.clone(), s.clone()
    module.receive(s)
    module.learn()
    assert torch.equal(sent, before)
    assert torch.equal(s, theirs)


class OddStrides(nn.Module):
    """Its weight's gradient has other strides than the weight, as those of compiled blocks may."""

    class Function(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x, weight):
            ctx.save_for_backward(x, weight)
            return x @ weight

        @staticmethod
        def backward(ctx, gradient):
            x, weight = ctx.saved_tensors
            return gradient @ weight.t(), (gradient.t() @ x).t()

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(7, 9, dtype=torch.float64))

    def forward(self, x):
        return self.Function.apply(x, self.weight)


@pytest.mark.parametrize("name", ["sgd", "adamw"])
def test_gradients_meet_the_optimizer_in_the_layout_of_their_parameters(name):
    """Fused optimizers walk parameter and gradient in memory order."""
    torch.manual_seed(0)
    body, head = nn.Sequential(OddStrides()), nn.Linear(9, 5).double()
    config = OptimizerConfig(name=name, lr=0.1, weight_decay=0.0)
    rules = Rules(wire_format=WireFormat(torch.float64))
    module = LocalModule(0, body, head, lambda p: optimizer.build(config, p), rules)
    reference = body[0].weight.detach().clone().requires_grad_()
    x, labels, _ = batch((7,))
    step = Step(0, lr=0.1)
    module(x, labels, step)
    module.signal()
    module.learn()
    gradient = module.gradients[0].clone(memory_format=torch.contiguous_format)
    assert module.gradients[0].stride() != body[0].weight.stride()
    module.update(step)
    plain = torch.optim.SGD if name == "sgd" else torch.optim.AdamW
    options = {"momentum": 0.9, "nesterov": True} if name == "sgd" else {"weight_decay": 0.0}
    expected = plain([reference], lr=0.1, fused=False, **options)
    reference.grad = gradient
    expected.step()
    torch.testing.assert_close(body[0].weight.detach(), reference.detach())


class Transposed(nn.Module):
    def forward(self, x):
        return x.transpose(1, 2).contiguous().transpose(1, 2)


def test_what_crosses_a_boundary_is_contiguous():
    """Strides would differ between a queue and a wire, and with them the order of sums."""
    rules = Rules(wire_format=WireFormat(torch.float64))
    body = nn.Sequential(nn.Linear(8, 8), Transposed())
    head = nn.Sequential(Transposed(), nn.Flatten(), nn.Linear(40, 5))
    module = LocalModule(1, body.double(), head.double(), plain_sgd, rules)
    x, labels, s = batch((5, 8))
    y, signal = one_step(module, x, labels, s, reconcile=False)
    assert y.is_contiguous()
    assert signal.is_contiguous()
    assert module.evaluate(x)[0].is_contiguous()


def test_bfloat16_crosses_the_boundary():
    settings = ReconcileConfig(weight=0.1, every=1)
    rules = Rules(reconcile=settings, wire_format=WireFormat(torch.bfloat16))
    body, head = nn.Sequential(nn.Linear(7, 9), nn.GELU()), nn.Linear(9, 5)
    module = LocalModule(1, body, head, plain_sgd, rules)
    before = weights(module)
    x, labels, s = batch((7,))
    y, signal = one_step(module, x.bfloat16(), labels, s.bfloat16())
    assert y.dtype == signal.dtype == torch.bfloat16
    assert all(p.dtype == torch.float32 for p in module.parameters())
    assert all(torch.isfinite(p).all() for p in module.parameters())
    assert any((a != b).any() for a, b in zip(weights(module), before, strict=True))


def test_acts_out_of_order_are_refused():
    module, _ = make("mlp")
    with pytest.raises(AssertionError, match="in order"):
        module.signal()


FED_BACK = LagPlan((Feedback(2 * LAG),))
"""Sent in step 0, and not again before it is applied."""


def applied(module, x, labels, target, **step):
    """Feedback for step 0 is applied in step 4, which has another batch."""
    later, later_labels, _ = batch(x.shape[1:], seed=9)
    module(x, labels, Step(0, lr=0.0))
    module.signal()
    sent = module.learn()
    module.update(Step(0, lr=0.0))
    now = Step(LAG, lr=1.0, **step)
    module(later, later_labels, now)
    module.signal()
    module.learn()
    assert module.lagged.expects(now, 0)
    module.apply_lagged(now, 0, *([] if target is None else [target]))
    module.update(now)
    return sent, later, later_labels


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_feedback_trains_the_head_alone(architecture):
    """theta - d l(now) - lambda d D(then): D is the distance of the head's signal to the feedback,
    written out with plain autograd; only the head has a part in it."""
    weight, distance = 0.7, {"reconcile": {"estimator": "exact", "distance": "relative"}}
    module, shape = make(architecture, weight, **distance, lag=FED_BACK)
    reference, _ = make(architecture, weight, **distance)
    x, labels, _ = batch(shape)
    with torch.no_grad():
        y = make(architecture)[0].body(x)
    target = torch.randn_like(y) / len(y)
    sent, later, later_labels = applied(module, x, labels, target)

    leaf = x.clone().requires_grad_()
    loss = functional.cross_entropy(reference.head(reference.body(leaf)), labels)
    torch.testing.assert_close(sent, torch.autograd.grad(loss, leaf))

    y = y.requires_grad_()
    with sdpa_kernel(SDPBackend.MATH):
        loss = functional.cross_entropy(reference.head(y), labels)
        (s,) = torch.autograd.grad(loss, y, create_graph=True)
    scale = (s**2).sum().detach() + (target**2).sum()
    (weight * ((s - target) ** 2).sum() / scale).backward()
    functional.cross_entropy(reference.head(reference.body(later)), later_labels).backward()
    for moved, p in zip(module.parameters(), reference.parameters(), strict=True):
        torch.testing.assert_close(moved, p - p.grad, rtol=1e-9, atol=1e-11)


def test_feedback_leaves_batch_norm_statistics_alone(monkeypatch):
    """They have seen the batch when it came."""
    head = nn.Sequential(nn.Linear(9, 9), nn.BatchNorm1d(9), nn.Linear(9, 5))
    made = nn.Linear(7, 9), head, (7,)
    monkeypatch.setitem(ARCHITECTURES, "head with batch norm", lambda: made)
    module, shape = make("head with batch norm", 0.7, lag=FED_BACK)
    x, labels, _ = batch(shape)
    applied(module, x, labels, torch.ones(6, 9, dtype=torch.float64))
    assert head[1].num_batches_tracked == 2, "the batch of step 0, and that of step 4"


def test_feedback_by_finite_differences_agrees_with_exact():
    vectors = []
    for estimator in ("exact", "finite_difference"):
        own = {"estimator": estimator, "distance": "relative", "step": 1e-5}
        module, shape = make("residual with batch norm", 0.7, reconcile=own, lag=FED_BACK)
        x, labels, _ = batch(shape)
        applied(module, x, labels, torch.ones(6, *shape, dtype=torch.float64))
        vectors.append(torch.cat([p.flatten() for p in module.parameters()]))
    torch.testing.assert_close(*vectors, rtol=1e-4, atol=1e-7)


def test_the_cosine_with_feedback_stays_until_the_next_one():
    """It is of the newest step that applied feedback; before there is none."""
    module, shape = make("mlp", 0.7, lag=FED_BACK)
    x, labels, _ = batch(shape)
    one_step(module, x, labels, None, reconcile=False)
    assert "feedback_cosine" not in module.metrics
    applied(module, x, labels, torch.ones(6, 9, dtype=torch.float64))
    cosine, loss = module.metrics["feedback_cosine"], module.metrics["loss"]
    step = Step(LAG + 1, lr=1.0)
    module(x, labels, step)
    module.signal()
    module.learn()
    assert not module.lagged.expects(step, 0)
    module.update(step)
    assert module.metrics["loss"] != loss
    assert module.metrics["feedback_cosine"] is cosine


def test_nobody_corrects_the_last_head():
    module, shape = make("mlp", 0.7, lag=FED_BACK)
    plain, _ = make("mlp", 0.0)
    x, labels, _ = batch(shape)
    _, later, later_labels = applied(module, x, labels, None)
    one_step(plain, later, later_labels, None, reconcile=False)
    for a, b in zip(module.parameters(), plain.parameters(), strict=True):
        assert torch.equal(a, b)


def tied_module(**rules):
    """Its head reads with the transpose of what its body writes with."""

    class Tied(nn.Module):
        def __init__(self, layer):
            super().__init__()
            self.weight = layer.weight

        def forward(self, x):
            return x @ self.weight

    torch.manual_seed(3)
    layer = nn.Linear(5, 9, bias=False).double()
    wire_format = WireFormat(torch.float64)
    body = nn.Sequential(layer, nn.Tanh())
    return LocalModule(1, body, Tied(layer), plain_sgd, Rules(wire_format=wire_format, **rules))


def test_a_head_may_be_tied_to_its_body():
    """With a shift, and where it learns from an earlier step."""
    own = ReconcileConfig(weight=0.05, every=1, distance="squared")
    module, reference = tied_module(reconcile=own), tied_module()
    x, labels, s = batch((5,))
    one_step(module, x, labels, s)
    leaf = x.clone().requires_grad_()
    loss = functional.cross_entropy(reference.head(reference.body(leaf)), labels)
    (g,) = torch.autograd.grad(loss, leaf)
    moved = x + 0.05 * 2 * len(x) * (g - s)
    functional.cross_entropy(reference.head(reference.body(moved)), labels).backward()
    (weight,), (p,) = module.parameters(), reference.parameters()
    torch.testing.assert_close(weight, p - p.grad)

    module = tied_module(reconcile=ReconcileConfig(weight=0.7, estimator="exact"), lag=FED_BACK)
    plain = tied_module(lag=FED_BACK)
    target = torch.ones(len(x), 9, dtype=torch.float64)
    applied(module, x, labels, target)
    applied(plain, x, labels, None)
    assert (weights(module)[0] - weights(plain)[0]).abs().max() > 1e-4


def test_what_is_under_way_is_let_go_once_it_is_applied():
    module, shape = make("mlp", 0.7, lag=LagPlan((Feedback(3),)))
    x, labels, _ = batch(shape)
    for number in range(12):
        step = Step(number, 0.1)
        module(x, labels, step)
        y = module.signal()
        module.learn()
        if module.lagged.expects(step, 0):
            module.apply_lagged(step, 0, y)
        module.update(step)
        due = [n for n in (0, 3, 6, 9) if n <= number < n + LAG]
        assert [kept.step for kept in module.lagged.awaiting] == due
        assert [kept.step for kept in module.lagged.pending] == due
