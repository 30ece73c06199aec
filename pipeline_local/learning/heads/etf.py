"""A classifier without parameters: its class vectors are the fixed vertices of a simplex.

After long training, classifiers converge to such a simplex (neural collapse: Papyan et al., 2020).
Here it is fixed from the start: classes are as far apart as possible, and only features learn.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional

from pipeline_local.errors import counted

SCALE = 16.0
"""Logits are SCALE times a cosine. Features on the vertex of their class then have a probability of
at least 0.999 among up to 1000 classes; features orthogonal to all classes have a loss of
log(classes) at any scale."""

EPSILON = 1e-5
"""Added to the mean square of the features, as in LayerNorm: features near zero have small
gradients and second derivatives instead of infinite ones."""


class SimplexETF(nn.Module):
    """Features [B, width] -> logits [B, classes]: cosines with fixed vertices, times `SCALE`.

    The vertices are a simplex equiangular tight frame turned by a random partial orthogonal P:

        sqrt(C / (C - 1)) * P (I - 1 1^T / C),   every two at a cosine of -1 / (C - 1).

    Such a frame of C vertices needs at least C - 1 dimensions. With fewer, it is projected by a
    random P, and its vertices are scaled back to length one: still fixed and spread out at random,
    but no longer at equal angles. In one dimension only two classes can be distinguished.

    Args:
        width: number of features.
        num_classes: C, at least 2.

    Raises:
        ValueError: fewer than two classes.
    """

    vertices: Tensor

    def __init__(self, width: int, num_classes: int) -> None:
        super().__init__()
        if num_classes < 2:
            raise ValueError(
                f"a simplex has at least 2 vertices, got {counted(num_classes, 'class', 'classes')}"
            )
        self.register_buffer("vertices", torch.empty(num_classes, width))

    def reset_parameters(self) -> None:
        """Draw the vertices from the global generator."""
        num_classes, width = self.vertices.shape
        plane = _orthogonal_to_ones(num_classes)
        turn = nn.init.orthogonal_(plane.new_empty(num_classes - 1, width))
        with torch.no_grad():
            self.vertices.copy_(functional.normalize(plane @ turn, dim=1))

    def forward(self, x: Tensor) -> Tensor:
        """Map pooled features [B, width] to logits [B, classes]."""
        mean_square = x.square().mean(1, keepdim=True)
        directions = x * torch.rsqrt(mean_square + EPSILON) / x.shape[1] ** 0.5
        return functional.linear(directions, self.vertices) * SCALE


def _orthogonal_to_ones(size: int) -> Tensor:
    """An orthonormal basis [size, size - 1] (float64) of the vectors whose entries sum to zero.

    Its rows, at equal length, are the vertices of a simplex.
    """
    centred = torch.eye(size, dtype=torch.float64) - 1 / size
    basis: Tensor = torch.linalg.qr(centred[:, :-1]).Q
    return basis
