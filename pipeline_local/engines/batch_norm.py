"""Batch norms that normalise by the microbatches of all replicas together.

torch's own (`nn.SyncBatchNorm`) needs GPUs, and its gradients cannot be differentiated again, as
reconciliation does.
"""

from collections.abc import Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from pipeline_local.engines.gradients import at_least_float32
from pipeline_local.engines.replicas import Replicas


def synchronize(parts: Sequence[nn.Module], replicas: Replicas | None) -> None:
    """Let all batch norms of parts of a network normalise by what all replicas see.

    Args:
        parts: whose batch norms are replaced; the new ones have their parameters and buffers.
        replicas: of the stage, which run the parts equally often, with equal numbers of samples.
    """
    if replicas is None or replicas.group is None:
        return
    for layer in [layer for part in parts for layer in part.modules()]:
        for name, child in list(layer.named_children()):
            if isinstance(child, _BatchNorm) and not isinstance(child, SyncedBatchNorm):
                setattr(layer, name, SyncedBatchNorm(child, replicas))


class _Sum(torch.autograd.Function):
    """The sum over all replicas; so is its gradient, which can be differentiated again."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, replicas: Replicas) -> Tensor:  # noqa: ANN401 (torch's)
        ctx.replicas = replicas
        total = x.clone()
        with replicas.waiting():
            dist.all_reduce(total, group=replicas.group)
        return total

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:  # noqa: ANN401
        return _Sum.apply(gradient, ctx.replicas), None


class SyncedBatchNorm(_BatchNorm):
    """A batch norm over several replicas; in evaluation the layer that it replaces.

    Args:
        original: gives its parameters, buffers and settings.
        replicas: of the layer's stage.
    """

    def __init__(self, original: _BatchNorm, replicas: Replicas) -> None:
        nn.Module.__init__(self)
        self.num_features = original.num_features
        self.eps = original.eps
        self.momentum = original.momentum
        self.affine = original.affine
        self.track_running_stats = original.track_running_stats
        self._parameters = original._parameters
        self._buffers = original._buffers
        self.training = original.training
        self._replicas = replicas

    def _check_input_dim(self, input: Tensor) -> None:
        """Accept what the layer before has given."""

    def forward(self, x: Tensor) -> Tensor:
        """Normalise [B, C, ...] by the mean and variance of all replicas' samples."""
        if not self.training:  # replicas score other numbers of samples, and padding
            normalised: Tensor = super().forward(x)
            return normalised
        axes = [0, *range(2, x.dim())]
        numbers = x.numel() // x.shape[1] * self._replicas.size
        wide = at_least_float32(x)
        shape = [1, -1, *[1] * (x.dim() - 2)]
        # far from zero the difference below would be of large numbers; all replicas know this one
        near = wide.new_zeros(()) if self.running_mean is None else self.running_mean.to(wide.dtype)
        wide = wide - near.view(shape)
        sums = torch.stack([wide.sum(axes), wide.square().sum(axes)])
        mean, square = _Sum.apply(sums, self._replicas) / numbers
        variance = (square - mean.square()).clamp_min(0)
        self._track(near + mean.detach(), variance.detach(), numbers)
        y: Tensor = (wide - mean.view(shape)) * torch.rsqrt(variance + self.eps).view(shape)
        if self.affine:
            y = y * self.weight.view(shape) + self.bias.view(shape)
        return y.to(x.dtype)

    @torch.no_grad()
    def _track(self, mean: Tensor, variance: Tensor, numbers: int) -> None:
        if self.running_mean is None or self.running_var is None:
            return
        assert self.num_batches_tracked is not None, "it is there if the statistics are"
        self.num_batches_tracked.add_(1)
        share = self.momentum
        if share is None:  # the mean over all batches
            share = 1.0 / float(self.num_batches_tracked)
        self.running_mean.lerp_(mean.to(self.running_mean.dtype), share)
        unbiased = variance * (numbers / max(1, numbers - 1))
        self.running_var.lerp_(unbiased.to(self.running_var.dtype), share)
