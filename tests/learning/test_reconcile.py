"""Discord, its gradient, and the agreement of neighbours: pure tensors, float64."""

import pytest
import torch
from torch import nn
from torch.nn import functional
from torch.nn.attention import SDPBackend, sdpa_kernel

from pipeline_local.config import ReconcileConfig
from pipeline_local.errors import UserError
from pipeline_local.learning import estimators, reconcile

torch.manual_seed(0)


class Attention(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.attention = nn.MultiheadAttention(width, 2, batch_first=True)
        self.norm = nn.LayerNorm(width)

    def forward(self, x):
        x = self.norm(x)
        return x + self.attention(x, x, x, need_weights=False)[0]


def conv_net(norm, activation):
    layers = [nn.Conv2d(3, 6, 3, padding=1), norm(6), activation()]
    return nn.Sequential(*layers, nn.Conv2d(6, 4, 3), nn.Flatten(), nn.Linear(4 * 16, 5))


NETWORKS = {
    "mlp": (lambda: nn.Sequential(nn.Linear(7, 9), nn.Tanh(), nn.Linear(9, 5)), (7,)),
    "conv": (lambda: conv_net(lambda _: nn.Identity(), nn.GELU), (3, 6, 6)),
    "conv with batch norm": (lambda: conv_net(nn.BatchNorm2d, nn.GELU), (3, 6, 6)),
    "attention": (
        lambda: nn.Sequential(Attention(8), Attention(8), nn.Flatten(), nn.Linear(32, 5)),
        (4, 8),
    ),
}


@pytest.fixture(params=NETWORKS)
def problem(request):
    make, shape = NETWORKS[request.param]
    torch.manual_seed(1)
    net = make().double()
    x = torch.randn(6, *shape, dtype=torch.float64)
    labels = torch.randint(5, (6,))
    s = torch.randn_like(x) / len(x)

    def objective(x):
        return functional.cross_entropy(net(x), labels)

    return net, objective, x, s


def discord_at(objective, x, s):
    x = x.clone().requires_grad_()
    (g,) = torch.autograd.grad(objective(x), x)
    return len(x) * ((g - s) ** 2).sum().item()


def test_discord_is_the_mean_squared_per_sample_distance():
    """Per-sample gradients are B times those of a mean-reduced loss."""
    g, s = torch.randn(4, 3, 2), torch.randn(4, 3, 2)
    per_sample = [((4 * g[i] - 4 * s[i]) ** 2).sum() for i in range(4)]
    torch.testing.assert_close(reconcile.discord(g, s), sum(per_sample) / 4)


def test_discord_does_not_depend_on_the_batch_size():
    net = nn.Linear(5, 3)
    x, labels = torch.randn(4, 5), torch.tensor([0, 1, 2, 0])
    row = torch.randn(4, 5)

    def measure(repeat):
        tall = x.repeat(repeat, 1).requires_grad_()
        loss = functional.cross_entropy(net(tall), labels.repeat(repeat))
        (g,) = torch.autograd.grad(loss, tall)
        return reconcile.discord(g, row.repeat(repeat, 1) / len(tall))

    torch.testing.assert_close(measure(1), measure(8))


def test_exact_is_the_derivative_of_the_discord(problem):
    """Against central differences of the discord itself, along random directions."""
    net, objective, x, s = problem
    params = list(net.parameters())
    added = reconcile.exact(objective, x, s, params)
    for seed in range(3):
        torch.manual_seed(seed)
        direction = [torch.randn_like(p) for p in params]
        eps = 1e-5
        values = []
        for sign in (1, -1):
            with torch.no_grad():
                torch._foreach_add_(params, direction, alpha=sign * eps)
            values.append(discord_at(objective, x, s))
            with torch.no_grad():
                torch._foreach_add_(params, direction, alpha=-sign * eps)
        slope = sum((a * d).sum().item() for a, d in zip(added, direction, strict=True))
        assert slope == pytest.approx((values[0] - values[1]) / (2 * eps), rel=1e-5, abs=1e-8)


def test_finite_difference_agrees_with_exact_on_smooth_networks(problem):
    net, objective, x, s = problem
    params = list(net.parameters())
    first = reconcile.plain(objective, x, params)
    exact = torch.cat([a.flatten() for a in reconcile.exact(objective, x, s, params)])
    added = reconcile.finite_difference(objective, x, s, params, 0.01, first)
    added = torch.cat([a.flatten() for a in added])
    assert torch.cosine_similarity(exact, added, dim=0) > 0.99
    assert added.norm() / exact.norm() == pytest.approx(1, abs=0.1)


@pytest.mark.parametrize("distance", ["squared", "relative", "pooled"])
def test_finite_difference_converges_to_exact(problem, distance):
    net, objective, x, s = problem
    params = list(net.parameters())
    layout = "NTC" if x.dim() == 3 else "NCHW"
    exact, added = (
        estimators.estimator(ReconcileConfig(estimator=estimator, step=1e-6)).added(
            estimators.Point(objective, x, s, params, between=reconcile.distance(distance, layout))
        )
        for estimator in ("exact", "finite_difference")
    )
    for a, b in zip(added, exact, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-5)


def gradients(objective, x, params):
    return torch.cat([g.flatten() for g in reconcile.plain(objective, x, params).params])


@pytest.mark.parametrize("distance", ["squared", "relative", "pooled"])
def test_what_a_shift_adds_is_exact_to_first_order_in_its_strength(problem, distance):
    """A tenth of lambda, a tenth of the error."""
    net, objective, x, s = problem
    params, layout = list(net.parameters()), "NTC" if x.dim() == 3 else "NCHW"
    added = reconcile.exact(objective, x, s, params, reconcile.distance(distance, layout))
    exact = torch.cat([a.flatten() for a in added])
    errors = []
    for weight in (1e-4, 1e-5):
        settings = ReconcileConfig(weight=weight / 8, distance=distance)
        first = reconcile.plain(objective, x, params)
        plain = torch.cat([g.flatten() for g in first.params])
        moved = reconcile.shift(settings, x, first.input, s, layout=layout)
        added = (gradients(objective, moved, params) - plain) / weight
        errors.append((added - exact).norm() / exact.norm())
    assert errors[1] < 0.01
    assert errors[1] / errors[0] == pytest.approx(0.1, abs=0.05)


def test_a_shift_is_bounded(problem):
    net, objective, x, s = problem
    g = reconcile.plain(objective, x, list(net.parameters())).input
    v = 2 * len(x) * (g - s)
    moved = reconcile.shift(ReconcileConfig(weight=1e9), x, g, s) - x
    torch.testing.assert_close(moved, v * 0.3 * x.norm() / v.norm())


def test_no_discord_shifts_nothing(problem):
    net, objective, x, _ = problem
    g = reconcile.plain(objective, x, list(net.parameters())).input
    assert torch.equal(reconcile.shift(ReconcileConfig(weight=1.0), x, g, g.clone()), x)


def test_a_part_of_a_batch():
    x = torch.zeros(10, 3)
    indices = reconcile.subsample(x, 0.3, torch.Generator().manual_seed(0))
    assert len(indices.unique()) == 3
    assert torch.equal(indices, indices.sort().values)
    assert len(reconcile.subsample(x, 0.01, torch.Generator())) == 2, "batch norm needs two samples"
    assert reconcile.subsample(x, 1.0, torch.Generator()) is None


def test_finite_difference_on_kinks_wants_a_longer_step():
    """With ReLU it is noisy, and a short step is the poor one: docs/results/estimators.md."""
    torch.manual_seed(0)
    net = conv_net(nn.BatchNorm2d, nn.ReLU).double()
    x, labels = torch.randn(64, 3, 6, 6, dtype=torch.float64), torch.randint(5, (64,))
    s = torch.randn_like(x) / len(x)

    def objective(x):
        return functional.cross_entropy(net(x), labels)

    params = list(net.parameters())
    exact = torch.cat([a.flatten() for a in reconcile.exact(objective, x, s, params)])
    cosines = []
    for step in (0.001, 0.03):
        first = reconcile.plain(objective, x, params)
        added = reconcile.finite_difference(objective, x, s, params, step, first)
        added = torch.cat([a.flatten() for a in added])
        cosines.append(torch.cosine_similarity(exact, added, dim=0).item())
    assert cosines[0] < cosines[1] < 0.999
    assert cosines[1] > 0.3


def test_no_discord_adds_nothing(problem):
    net, objective, x, _ = problem
    params = list(net.parameters())
    first = reconcile.plain(objective, x, params)
    s = first.input.clone()
    for added in (
        reconcile.exact(objective, x, s, params),
        reconcile.finite_difference(objective, x, s, params, 0.01, first),
    ):
        assert all(torch.isfinite(a).all() and a.abs().max() < 1e-12 for a in added)


def test_bfloat16_is_compared_in_float32():
    g = (torch.randn(4, 1000) * 1e-3).bfloat16()
    s = torch.zeros_like(g)
    torch.testing.assert_close(reconcile.discord(g, s), reconcile.discord(g.float(), s.float()))


@pytest.mark.parametrize("name", ["squared", "relative", "pooled"])
def test_every_distance_is_zero_in_agreement_and_its_gradient_finite(name):
    distance = reconcile.distance(name, "NCHW")
    s = torch.randn(4, 3, 2, 2)
    torch.testing.assert_close(distance(s, s), torch.tensor(0.0), atol=1e-6, rtol=0)
    for target in (torch.randn_like(s), torch.zeros_like(s), s * 1e-30):
        g = (s * (0 if target is s else 1)).requires_grad_()
        value = distance(g, target)
        (slope,) = torch.autograd.grad(value, g)
        assert value >= 0
        assert slope.isfinite().all()


def test_relative_distance_does_not_depend_on_the_scale():
    g, s = torch.randn(4, 3), torch.randn(4, 3)
    torch.testing.assert_close(reconcile.relative(9 * g, 9 * s), reconcile.relative(g, s))
    torch.testing.assert_close(reconcile.relative(-s, s), torch.tensor(2.0))


@pytest.mark.parametrize(
    ("layout", "shape", "axes"),
    [("NCHW", (4, 3, 2, 5), (2, 3)), ("NHWC", (4, 2, 5, 3), (1, 2)), ("NTC", (4, 7, 3), (1,))],
)
def test_pooled_distance_does_not_see_positions(layout, shape, axes):
    distance = reconcile.distance("pooled", layout)
    g, s = torch.randn(shape), torch.randn(shape)
    expected = reconcile.relative(g.sum(axes), s.sum(axes))
    torch.testing.assert_close(distance(g, s), expected)
    torch.testing.assert_close(distance(g.roll(1, axes[0]), s), expected)
    assert not torch.allclose(distance(g.roll(1, 0), s), expected), "samples do matter"


def test_pooled_distance_of_vectors_is_the_relative_one():
    g, s = torch.randn(4, 3), torch.randn(4, 3)
    for layout in ("NC", "NCHW"):
        assert reconcile.distance("pooled", layout)(g, s) == reconcile.relative(g, s)


class OnceDifferentiable(torch.autograd.Function):
    """As flash attention: a backward that cannot be differentiated."""

    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x**2

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad):
        return 2 * ctx.saved_tensors[0] * grad


def test_exact_names_the_remedy_where_a_second_derivative_is_missing():
    x, s = torch.randn(4, 3), torch.randn(4, 3)
    weight = torch.ones(3, requires_grad=True)
    with pytest.raises(UserError, match="differentiates twice"):
        reconcile.exact(lambda x: (OnceDifferentiable.apply(x) * weight).sum(), x, s, [weight])


def test_exact_refuses_flash_attention_that_a_model_insists_on():
    x = torch.randn(2, 1, 4, 8)
    weight = torch.ones(8, requires_grad=True)

    def objective(x):
        with sdpa_kernel(SDPBackend.FLASH_ATTENTION):
            y = functional.scaled_dot_product_attention(x * weight, x, x)
        return y.square().sum()

    with pytest.raises(UserError, match="differentiates twice"):
        reconcile.exact(objective, x, torch.zeros_like(x), [weight])
    shift = estimators.estimator(ReconcileConfig(weight=1.0))
    added = shift.added(estimators.Point(objective, x, torch.zeros_like(x), [weight]))
    assert added[0].isfinite().all()
