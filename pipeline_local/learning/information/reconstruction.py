"""Reconstruction: a small decoder gives the module's own input back from its activations."""

import math
from typing import Annotated

from pydantic import Field
from torch import Tensor, nn

from pipeline_local.engines.gradients import at_least_float32
from pipeline_local.errors import FitsNowhereError
from pipeline_local.learning.heads import ToMap
from pipeline_local.learning.information.term import INFORMATION, Ends, Information

EPSILON = 1e-6
"""Added to the variance of the input: one that is constant has nothing to reconstruct."""


class Reconstruction(Information):
    """Activations [B, ...] -> maps like the module's input [B, C, H, W].

    The first module's input are the data, that of a later module the activations of its upstream
    neighbour. Tokens are layer-normalised, as the block that reads them does it, and laid out on
    their grid without a class token.

    Args:
        to_map: turns the activations into maps.
        to_target: turns the input into maps.
        width: channels between the decoder's two convolutions.
    """

    def __init__(self, to_map: ToMap, to_target: ToMap, width: int) -> None:
        super().__init__()
        self.to_target = to_target
        channels, *size = self.to_target.map_shape
        maps, *grid = to_map.map_shape
        smaller = [min(pair) for pair in zip(grid, size, strict=True)]
        factors = [math.ceil(wanted / got) for wanted, got in zip(size, smaller, strict=True)]
        self.decoder = nn.Sequential(
            to_map,
            *([nn.AdaptiveAvgPool2d(tuple(smaller))] if smaller != grid else []),
            _convolution(maps, width, smaller, bias=False),
            nn.BatchNorm2d(width),
            nn.ReLU(),
            _convolution(width, channels * math.prod(factors), smaller),
            ToPixels((factors[0], factors[1]), (size[0], size[1])),
        )

    def forward(self, y: Tensor) -> Tensor:
        """Return the reconstructed maps [B, C, H, W]."""
        maps: Tensor = self.decoder(y)
        return maps

    def loss(self, prediction: Tensor, x: Tensor, labels: Tensor) -> Tensor:
        """Return the part of the input's variance that is not explained: 0 where it is given back,
        about 1 where nothing is known but the mean of each channel."""
        target = self.to_target(at_least_float32(x))
        spread = target - target.mean((0, 2, 3), keepdim=True)
        error = (at_least_float32(prediction) - target).square().mean()
        unexplained: Tensor = error / (spread.square().mean() + EPSILON)
        return unexplained


class ToPixels(nn.Module):
    """Turns groups of channels into pixels: [B, C * a * b, h, w] -> [B, C, H, W], H up to a * h.

    It is torch's `PixelShuffle` for sides that are no multiples; what is beyond them is cut off.

    Args:
        factors: a and b.
        size: H and W.
    """

    def __init__(self, factors: tuple[int, int], size: tuple[int, int]) -> None:
        super().__init__()
        self.factors, self.size = factors, size

    def forward(self, x: Tensor) -> Tensor:
        """Return the larger maps."""
        (a, b), (height, width) = self.factors, self.size
        batch, _, h, w = x.shape
        pixels = x.reshape(batch, -1, a, b, h, w).permute(0, 1, 4, 2, 5, 3)
        return pixels.reshape(batch, -1, h * a, w * b)[..., :height, :width]


def _convolution(maps: int, out: int, grid: list[int], bias: bool = True) -> nn.Conv2d:
    """3x3; on a single position 1x1, which is the same there."""
    side = 1 if math.prod(grid) == 1 else 3
    return nn.Conv2d(maps, out, side, padding=side // 2, bias=bias)


@INFORMATION.add("reconstruction")
def reconstruction(ends: Ends, *, width: Annotated[int, Field(ge=1)] = 12) -> Reconstruction:
    """InfoPro's decoder of two convolutions, here for the module's own input (Pathak et al.,
    2022)."""
    if not ends.input_dtype.is_floating_point:
        raise FitsNowhereError(
            f"it reconstructs floating-point inputs, got {ends.input_dtype}",
            "leave information out, as the first module's input is whole numbers",
        )
    if ends.input_layout is None:
        raise ValueError(f"it reconstructs inputs of 1 to 3 axes, got {list(ends.input_shape)}")
    to_target = ToMap(ends.input_layout, ends.input_shape, affine=False)
    return Reconstruction(ToMap(ends.layout, ends.shape), to_target, width)
