"""Contrast: samples of one class are to be closer to each other than to all others."""

from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional

from pipeline_local.engines.gradients import at_least_float32
from pipeline_local.errors import FitsNowhereError
from pipeline_local.learning.heads import layers
from pipeline_local.learning.information.term import INFORMATION, Ends, Information


class Contrast(Information):
    """Activations [B, ...] -> projections [B, features], whose directions are compared.

    Args:
        network: the projection.
        temperature: what cosines are divided by.
    """

    def __init__(self, network: nn.Module, temperature: float) -> None:
        super().__init__()
        self.network, self.temperature = network, temperature

    def forward(self, y: Tensor) -> Tensor:
        """Return the projections [B, features]."""
        projections: Tensor = self.network(y)
        return projections

    def loss(self, prediction: Tensor, x: Tensor, labels: Tensor) -> Tensor:
        """Return the supervised contrastive loss (Khosla et al., 2020): for each sample, the mean
        cross-entropy of finding those of its class (P) among all others (A),

            mean over p in P of -log (exp(z.p / t) / sum over a in A of exp(z.a / t)),

        and 0 where it is the only one of its class.
        """
        z = functional.normalize(at_least_float32(prediction), dim=1)
        itself = torch.eye(len(z), dtype=torch.bool, device=z.device)
        logits = (z @ z.T / self.temperature).masked_fill(itself, float("-inf"))
        alike = (labels[:, None] == labels) & ~itself
        costs = (logits.logsumexp(1, keepdim=True) - logits).masked_fill(~alike, 0.0)
        return (costs.sum(1) / alike.sum(1).clamp_min(1)).mean()


@INFORMATION.add("contrast")
def contrast(
    ends: Ends,
    *,
    temperature: Annotated[float, Field(gt=0)] = 0.07,
    features: Annotated[int, Field(ge=1)] = 128,
    width: Annotated[int, Field(ge=1)] = 64,
    stride: Annotated[int, Field(ge=1)] = 2,
) -> Contrast:
    """InfoPro's projection by 1c2f, whose loss compares classes within a microbatch."""
    batch, *shape = ends.labels.shape
    if shape or ends.labels.dtype.is_floating_point:
        soft = ends.labels.dtype.is_floating_point
        raise FitsNowhereError(
            f"it compares labels that are one class per sample, got {ends.labels.dtype} {shape}",
            f"leave information out{', or data.mixup, if it is what makes them' if soft else ''}",
        )
    if batch < 2:
        advice = "choose a larger data.batch_size, or fewer train.microbatches"
        raise FitsNowhereError("it compares samples, got microbatches of one", advice)
    return Contrast(
        layers.one_conv(ends.layout, ends.shape, width, stride, 128, features), temperature
    )
