"""Successive gradient reconciliation (Yang et al., ICML 2024): the discord and its gradients.

Pure functions of tensors. A module's local loss l is mean-reduced over its batch of B samples;
g = dl/dx is its gradient at its input x, s its upstream neighbour's gradient at that same tensor.
The paper's abstract names the mismatch of g and s; the distance and its scale are our convention
(docs/mathematics.md).
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor
from torch.autograd import grad
from torch.nn.attention import SDPBackend, sdpa_kernel

from pipeline_local.config import ReconcileConfig
from pipeline_local.engines import gradients
from pipeline_local.engines.gradients import Gradient, at_least_float32
from pipeline_local.errors import UserError, first_line
from pipeline_local.layout import POSITIONS, Layout

Objective = Callable[[Tensor], Tensor]
"""A module's local loss as a function of its input [B, ...]; the result is a scalar."""


LONGEST_SHIFT = 0.3
"""Longest shift of an input, over its norm: further away, the gradient would be that of another
input. The limit applies early in training, and with relative distances where gradients vanish."""

Distance = Callable[[Tensor, Tensor], Tensor]
"""The distance of an input gradient [B, ...] and a signal of the same shape, as a scalar."""


@dataclass(frozen=True)
class Gradients:
    """The first-order gradients of a local loss at the input [B, ...] and for each parameter.

    Where nothing depends on it, that at the input is zero, and that of a parameter None.
    """

    input: Tensor
    params: Sequence[Gradient]


def discord(g: Tensor, s: Tensor) -> Tensor:
    """Return D = B * sum((g - s)^2): the mean over samples of the squared per-sample distance.

    The factor B undoes the 1/B of a mean-reduced loss twice and averages once, so a weight on D
    does not depend on the batch size.

    Args:
        g: input gradient [B, ...].
        s: signal, of the same shape.
    """
    return len(g) * (at_least_float32(g) - at_least_float32(s)).square().sum()


def relative(g: Tensor, s: Tensor) -> Tensor:
    """Return the squared distance over the squared norms of both (held fixed), over the batch.

    It is from 0 to 2 at any scale, so that boundaries are comparable, and safe where s or g is 0.
    """
    wide_g, wide_s = at_least_float32(g), at_least_float32(s)
    scale = wide_g.detach().square().sum() + wide_s.square().sum()
    return (wide_g - wide_s).square().sum() / scale.clamp_min(1e-30)


def pooled(positions: tuple[int, ...], g: Tensor, s: Tensor) -> Tensor:
    """Return the `relative` distance of the sums over these axes, independent of positions.

    Axes that a layer has flattened are ignored.
    """
    axes = [axis for axis in positions if axis < g.dim()]
    return relative(g.sum(axes), s.sum(axes)) if axes else relative(g, s)


def distance(name: str, layout: Layout) -> Distance:
    """Return the distance with this name (`reconcile.distance`) for gradients of this layout."""
    named: dict[str, Distance] = {
        "squared": discord,
        "relative": relative,
        "pooled": partial(pooled, POSITIONS[layout]),
    }
    return named[name]


def plain(objective: Objective, x: Tensor, params: Sequence[Tensor]) -> Gradients:
    """Return the gradients of the local loss at x, by one forward and one backward pass."""
    x = x.detach().requires_grad_()
    g, *rest = gradients.of(objective(x), [x, *params])
    return Gradients(torch.zeros_like(x) if g is None else g, rest)


def exact(
    objective: Objective,
    x: Tensor,
    s: Tensor,
    params: Sequence[Tensor],
    between: Distance = discord,
) -> list[Gradient]:
    """Return dD/d(params) by double backward: the reference for every other estimator.

    Attention runs on its composite kernel: flash and memory-efficient attention have no second
    derivative (pytorch#116350).
    """
    x = x.detach().requires_grad_()
    with sdpa_kernel(SDPBackend.MATH):
        (g,) = gradients.of(objective(x), [x], create_graph=True)
        if g is None:
            return [None] * len(params)
        if _ends_early(g):
            raise UserError(f"{NOT_TWICE}; use reconcile.estimator=shift")
        try:
            return gradients.of(between(g, s), params)
        except RuntimeError as error:
            if "is not implemented" not in str(error):
                raise
            raise UserError(
                f"{NOT_TWICE} ({first_line(error)}); use reconcile.estimator=shift"
            ) from error


NOT_TWICE = (
    "reconcile.estimator=exact differentiates twice, which an operation of this network cannot"
)


def _ends_early(g: Tensor) -> bool:
    """Whether a `once_differentiable` function is in the graph of a gradient.

    It would raise if it were reached, but `autograd.grad` skips branches without parameters, and
    would silently return an incomplete gradient.
    """
    nodes, seen = [g.grad_fn], set()
    while nodes:
        node = nodes.pop()
        if node is None or node in seen:
            continue
        if node.name().endswith("Error"):
            return True
        seen.add(node)
        nodes.extend(following for following, _ in node.next_functions)
    return False


def finite_difference(
    objective: Objective,
    x: Tensor,
    s: Tensor,
    params: Sequence[Tensor],
    step: float,
    first: Gradients,
    between: Distance = discord,
) -> list[Gradient]:
    """Return dD/d(params) to first order in `step`, by one more forward and backward pass.

    With v = dD/dg = 2B (g - s) held fixed, dD/d(params) = d<v, g>/d(params), the derivative of the
    plain gradient along v. The difference is one-sided, at x + step * |x| * v / |v|. The objective
    must draw the same dropout masks again.

    Args:
        step: length of the perturbation relative to |x|.
        first: the plain gradients at x. Its input gradient is overwritten by the perturbed input,
            as the peak memory of a module is here.
    """
    v = _slope(first.input, s, between)
    size, length = _norm(v), step * _norm(x)
    moved = first.input.detach().copy_(x).addcmul_(v, length / size)
    del v
    second = gradients.of(objective(moved), params)
    added = gradients.plus(second, first.params, alpha=-1)
    gradients.scale(added, size / length)
    return added


def shift(
    settings: ReconcileConfig,
    x: Tensor,
    g: Tensor,
    s: Tensor,
    part: Tensor | None = None,
    layout: Layout = "NCHW",
) -> Tensor:
    """Return the input at which the plain gradient is the reconciled one, to first order in lambda.

    With v = dD/dg held fixed, dD/d(params) is the derivative of the plain gradient along v, so

        dl/d(params) at x + lambda v  =  dl/d(params) + lambda dD/d(params)  at x, + O(lambda^2).

    Only one gradient of the parameters is needed, none at x, and nothing is divided by a small
    step. Where lambda |v| exceeds `LONGEST_SHIFT` times |x|, the input moves by the latter.

    Args:
        settings: lambda and distance.
        x: input [B, ...].
        g: input gradient at x, of the same shape; it is overwritten by the result.
        s: the target of g, of the same shape.
        part: indices of the samples to move, as far as if all were moved; None: all.
        layout: meaning of the axes of x.
    """
    v = _slope(on_subsample(g, part), on_subsample(s, part), distance(settings.distance, layout))
    moving = x if part is None else x[part]
    longest = LONGEST_SHIFT * _norm(moving) / _norm(v)
    length = longest.clamp_max(settings.strength * len(x) / len(moving))
    moved = g.detach().copy_(x)
    if part is None:
        return moved.addcmul_(v, length)
    moved[part] = moved[part].addcmul_(v, length)
    return moved


def subsample(x: Tensor, fraction: float, generator: torch.Generator) -> Tensor | None:
    """Return the indices of a random part of a batch [B, ...], in order; None for all samples."""
    count = subsample_size(len(x), fraction)
    if count >= len(x):
        return None
    indices = torch.randperm(len(x), generator=generator)[:count].sort().values
    return indices.to(x.device, non_blocking=True)  # the host must not wait for the device


def subsample_size(size: int, fraction: float) -> int:
    """Return how many samples of a batch of that size are in the subsample; at least two."""
    return max(2, round(fraction * size))


def on_subsample(gradient: Tensor, part: Tensor | None) -> Tensor:
    """Return the gradient [B, ...] of a mean-reduced loss over a part of its batch only."""
    return gradient if part is None else gradient[part] * (len(gradient) / len(part))


def _slope(g: Tensor, s: Tensor, between: Distance) -> Tensor:
    """v = dD/dg."""
    g = g.detach().requires_grad_()
    (v,) = grad(between(g, s), g)
    return v


def _norm(x: Tensor) -> Tensor:
    """The Euclidean norm of all numbers, never zero, so that it can be a divisor."""
    norm: Tensor = torch.linalg.vector_norm(at_least_float32(x))
    return norm.clamp_min(1e-30)
