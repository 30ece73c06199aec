"""Gradients of several tensors, of which some have none.

As in torch, None is not zero: an optimizer leaves a parameter without a gradient alone, where it
would decay one whose gradient is zero, and move it by its momentum.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

Gradient = Tensor | None
"""The gradient of one tensor; None: nothing depends on the tensor."""


def of(
    output: Tensor,
    inputs: Sequence[Tensor],
    output_grad: Tensor | None = None,
    create_graph: bool = False,
) -> list[Gradient]:
    """Return the gradients of an output at its inputs; None at those that it does not depend on.

    Each has memory of its own, so that it may be written to: torch returns one tensor for both
    terms of a sum, the output's gradient where the output is the input, and a single number for all
    elements of what is summed up.

    Args:
        output: a scalar, or a tensor of any shape.
        inputs: tensors that require a gradient.
        output_grad: gradient at the output, of its shape; None: one, for a scalar.
        create_graph: whether the gradients can be differentiated again, and are not written to.
    """
    if not output.requires_grad or not inputs:
        return [None] * len(inputs)
    found = torch.autograd.grad(
        output, inputs, output_grad, create_graph=create_graph, allow_unused=True
    )
    taken: set[int] = set() if output_grad is None else {_memory(output_grad)}
    own: list[Gradient] = []
    for gradient in found:
        if gradient is not None:
            memory = _memory(gradient)
            held = memory in taken or (not create_graph and _repeats(gradient))
            gradient = gradient.clone() if held else gradient
            taken.add(memory)
        own.append(gradient)
    return own


def _memory(tensor: Tensor) -> int:
    storage: int = tensor.untyped_storage()._cdata  # fake tensors have no address
    return storage


def _repeats(tensor: Tensor) -> bool:
    """Whether several elements are at one place in memory, as an expanded tensor has them."""
    if tensor.is_contiguous():  # nearly all are, and this is ten times as fast
        return False
    pairs = zip(tensor.stride(), tensor.shape, strict=True)
    return any(step == 0 and size > 1 for step, size in pairs)


def plus(ones: Sequence[Gradient], others: Sequence[Gradient], alpha: int = 1) -> list[Gradient]:
    """Return ones + alpha * others, pair by pair; None where both have no gradient."""
    pairs = list(zip(ones, others, strict=True))
    both = [(one, other) for one, other in pairs if one is not None and other is not None]
    sums = torch._foreach_add(*map(list, zip(*both, strict=True)), alpha=alpha) if both else ()
    added = iter(sums)

    def total(one: Gradient, other: Gradient) -> Gradient:
        if other is None:
            return one
        return other * alpha if one is None else next(added)

    return [total(one, other) for one, other in pairs]


def accumulate(total: list[Gradient], others: Sequence[Gradient], share: float) -> None:
    """Add a share of the others to a sum in place, pair by pair, in one pass over both.

    The others stay as they are. At first the sum is empty.
    """
    pairs = list(zip(total or [None] * len(others), others, strict=True))
    both = [(one, other) for one, other in pairs if one is not None and other is not None]
    if both:
        torch._foreach_add_(*map(list, zip(*both, strict=True)), alpha=share)
    fresh = known([other for one, other in pairs if one is None])
    shares = iter(torch._foreach_mul(fresh, share) if fresh else ())
    total[:] = [next(shares) if one is None and other is not None else one for one, other in pairs]


def summed(params: Sequence[Tensor], gradients: Sequence[Gradient]) -> list[Gradient]:
    """Return one gradient per parameter, in the order of their first places: the sum of its own;
    none where none are given."""
    if not gradients:
        return []
    total: dict[Tensor, Gradient] = {}
    for parameter, gradient in zip(params, gradients, strict=True):
        (total[parameter],) = plus([total.get(parameter)], [gradient])
    return list(total.values())


def divided(gradients: Sequence[Gradient], divisor: int) -> list[Gradient]:
    """Return the quotients of those that there are."""
    there = known(gradients)
    quotients = iter(torch._foreach_div(there, divisor) if there else ())
    return [None if gradient is None else next(quotients) for gradient in gradients]


def scale(gradients: Sequence[Gradient], factor: float | Tensor) -> None:
    """Multiply those that there are, in place."""
    if there := known(gradients):
        torch._foreach_mul_(there, factor)


def known(gradients: Sequence[Gradient]) -> list[Tensor]:
    """Return those that there are."""
    return [gradient for gradient in gradients if gradient is not None]


def at_least_float32(x: Tensor) -> Tensor:
    """Return x in at least float32: sums of small squares underflow in less, and a loss would be
    too coarse."""
    return x if x.dtype == torch.float64 else x.float()
