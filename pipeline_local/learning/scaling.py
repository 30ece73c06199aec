"""Loss scaling: a local loss is differentiated times its module's scale, which no neighbour sees.

In float16 a gradient below 6e-8 is zero, so the loss is multiplied first. Gradients of parameters
stay scaled: the module's engine divides them. Gradients of activations are divided here, in
float32.
"""

from typing import Any

import torch
from torch import Tensor

from pipeline_local.engines.engine import Engine


class Scaling:
    """What the scale of a module's loss does to tensors; a scale of 1 leaves each as it is.

    Args:
        engine: of the module; it chooses the scale of each step.
        scales: whether the scale may be another one than 1.
    """

    def __init__(self, engine: Engine, scales: bool) -> None:
        self._engine = engine
        self._scales = scales

    def times(self, loss: Tensor) -> Tensor:
        """Return a loss, a scalar, times the scale."""
        return loss.float() * self._engine.scale if self._scales else loss

    def over(self, gradient: Tensor) -> Tensor:
        """Return a gradient of a scaled loss at activations [B, ...] as it is without the scale."""
        return gradient.float() / self._engine.scale if self._scales else gradient

    def entering(self, x: Tensor) -> Tensor:
        """Return the input [B, ...] of what a scaled loss depends on: the gradient that it gets is
        without the scale."""
        scaled = self._scales and x.requires_grad
        return _Entering.apply(x, self._engine.scale) if scaled else x

    def target(self, target: Tensor, g: Tensor) -> Tensor:
        """Return what a gradient is brought closer to: what a neighbour has sent, or the gradient
        itself, if the neighbour's scale was too large for its own.

        That neighbour leaves out its own step, and makes its scale smaller.

        Args:
            target: signal or feedback [B, ...].
            g: the gradient, of the same shape.
        """
        return torch.where(target.isfinite().all(), target, g) if self._scales else target


class _Entering(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, scale: float) -> Tensor:  # noqa: ANN401 (torch's)
        ctx.scale = scale
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:  # noqa: ANN401
        return gradient.float() / ctx.scale, None
