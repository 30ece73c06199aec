"""Layers of several heads: they turn any activations into maps or vectors, and into outputs."""

import copy
import math

import torch
from torch import Tensor, nn

from pipeline_local.layout import POSITIONS, Layout


class ToMap(nn.Module):
    """Turns any activations [B, ...] into feature maps [B, C, H, W].

    Args:
        layout: meaning of the axes of the activations.
        shape: shape of one sample's activations.
        affine: whether the norm of tokens has a scale and a shift.
    """

    def __init__(self, layout: Layout, shape: tuple[int, ...], affine: bool = True) -> None:
        super().__init__()
        self.layout = layout
        is_tokens = layout == "NTC"
        self.norm = (
            nn.LayerNorm(shape[-1], elementwise_affine=affine) if is_tokens else nn.Identity()
        )
        self.map_shape = self._map_shape(shape)

    def _map_shape(self, shape: tuple[int, ...]) -> tuple[int, int, int]:
        if self.layout == "NCHW":
            return shape[0], shape[1], shape[2]
        if self.layout == "NHWC":
            return shape[2], shape[0], shape[1]
        if self.layout == "NC":
            return shape[0], 1, 1
        if self.layout == "NCT":
            return shape[0], 1, shape[1]
        tokens, channels = shape
        for grid in (tokens - 1, tokens):  # a class token stands apart from the grid
            side = math.isqrt(grid)
            if side > 0 and side * side == grid:
                return channels, side, side
        return channels, tokens, 1

    def forward(self, x: Tensor) -> Tensor:
        """Return the same numbers on their grid, without a class token."""
        if self.layout == "NHWC":
            return x.permute(0, 3, 1, 2)
        if self.layout == "NTC":
            _, height, width = self.map_shape
            x = self.norm(x)[:, -height * width :].transpose(1, 2)
        return x.reshape(x.shape[0], *self.map_shape) if self.layout != "NCHW" else x


class MeanPool(nn.Module):
    """The mean over all positions: [B, ...] -> [B, C]."""

    def __init__(self, layout: Layout) -> None:
        super().__init__()
        self.axes = POSITIONS[layout]

    def forward(self, x: Tensor) -> Tensor:
        """Return the mean over the position axes of the layout."""
        return x.mean(self.axes) if self.axes else x


class Pool(nn.Module):
    """Takes the means of squares of positions; a class token stays as it is.

    Args:
        layout: meaning of the axes of the activations, which the result has, too.
        shape: shape of one sample's activations.
        side: of a square, in positions.

    Raises:
        ValueError: the activations have no positions.
    """

    def __init__(self, layout: Layout, shape: tuple[int, ...], side: int) -> None:
        super().__init__()
        if not POSITIONS[layout]:
            raise ValueError(f"activations {shape} have no positions to pool")
        self.layout = layout
        self.side = side
        self.grid = ToMap(layout, shape).map_shape[1:]

    def forward(self, x: Tensor) -> Tensor:
        """Return activations [B, ...] with fewer positions."""
        if self.layout == "NCHW":
            return self._means(x)
        if self.layout == "NCT":
            return self._means(x[:, :, None]).squeeze(2)
        if self.layout == "NHWC":
            return self._means(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
        apart = x.shape[1] - math.prod(self.grid)
        maps = x[:, apart:].transpose(1, 2).reshape(x.shape[0], x.shape[2], *self.grid)
        means = self._means(maps).flatten(2).transpose(1, 2)
        return torch.cat([x[:, :apart], means], dim=1)

    def _means(self, maps: Tensor) -> Tensor:
        squares = [min(self.side, size) for size in maps.shape[2:]]
        return nn.functional.avg_pool2d(maps, squares, ceil_mode=True)


class ToChannelsLast(nn.Module):
    """Moves channels to the last axis: [B, C, H, W] -> [B, H, W, C]."""

    def forward(self, x: Tensor) -> Tensor:
        """Return a view with the channels last."""
        return x.permute(0, 2, 3, 1)


class Resize(nn.Module):
    """Resizes maps bilinearly: [B, D, h, w] -> [B, D, H, W]."""

    def __init__(self, size: tuple[int, ...]) -> None:
        super().__init__()
        self.size = size

    def forward(self, x: Tensor) -> Tensor:
        """Return the resized maps."""
        return nn.functional.interpolate(x, self.size, mode="bilinear", align_corners=False)


def linear_head(
    layout: Layout, shape: tuple[int, ...], output_shape: tuple[int, ...]
) -> nn.Sequential:
    """Build the smallest head: global average pool and a linear layer; for maps of outputs a 1x1
    convolution, whose maps are resized to the size of the outputs; for tokens a norm and a linear
    layer at each position.

    Args:
        layout: meaning of the axes of the activations.
        shape: shape of one sample's activations.
        output_shape: shape of one sample's outputs: (D,), (D, H, W), or (T, V) for tokens.

    Raises:
        ValueError: outputs are for tokens, and activations are none.
    """
    if len(output_shape) == 2:
        length, vocabulary = output_shape
        if layout != "NTC" or shape[0] != length:
            raise ValueError(f"activations {shape} of layout {layout} are not {length} tokens")
        return nn.Sequential(nn.LayerNorm(shape[1]), nn.Linear(shape[1], vocabulary, bias=False))
    num_outputs, *size = output_shape
    if size:
        to_map = ToMap(layout, shape)
        project = nn.Conv2d(to_map.map_shape[0], num_outputs, 1)
        return nn.Sequential(to_map, project, Resize(tuple(size)))
    width = channels(layout, shape)
    norm = [nn.LayerNorm(width)] if layout == "NTC" else []
    return nn.Sequential(*norm, MeanPool(layout), nn.Linear(width, num_outputs))


def one_conv(
    layout: Layout, shape: tuple[int, ...], width: int, stride: int, hidden: int, outputs: int
) -> nn.Sequential:
    """Build InfoPro's 1c2f: a 3x3 convolution, a pool and two linear layers.

    Args:
        layout: meaning of the axes of the activations.
        shape: shape of one sample's activations.
        width: channels of the convolution.
        stride: its stride.
        hidden: width of the first linear layer.
        outputs: width of the second.
    """
    to_map = ToMap(layout, shape)
    return nn.Sequential(
        to_map,
        nn.Conv2d(to_map.map_shape[0], width, 3, stride, padding=1, bias=False),
        nn.BatchNorm2d(width),
        nn.ReLU(),
        MeanPool("NCHW"),
        nn.Linear(width, hidden),
        nn.ReLU(),
        nn.Linear(hidden, outputs),
    )


def channels(layout: Layout, shape: tuple[int, ...]) -> int:
    """How many channels one sample's activations have."""
    return shape[0] if layout in ("NCHW", "NCT", "NC") else shape[-1]


def output_shape(module: nn.Module, shape: tuple[int, ...]) -> tuple[int, ...]:
    """Return the shape of one sample's output of a meta module, from that of one sample's input."""
    probe = copy.deepcopy(module).eval()
    with torch.no_grad():
        return tuple(probe(torch.empty(2, *shape, device="meta")).shape[1:])


def reset(module: nn.Module) -> None:
    """Draw all weights afresh by torch's initialisation of each layer."""
    for layer in module.modules():
        if own := getattr(layer, "reset_parameters", None):
            own()
