"""Auxiliary heads: what turns a module's activations into a local loss.

Built on the meta device, like the backbone's blocks, so that a rank pays only for its own. Images,
token sequences and series meet the same heads: tokens are layer-normalised and laid out on their
grid, series in one row.
"""

import copy
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from pipeline_local.config import HeadConfig
from pipeline_local.layout import POSITIONS, Layout
from pipeline_local.learning.etf import SimplexETF


@dataclass(frozen=True)
class Site:
    """Where a head is attached.

    Attributes:
        layout: meaning of the axes of the activations.
        shape: one sample's activations, without the batch axis.
        later: the backbone's blocks behind this module, on the meta device.
        later_shapes: one sample's input shape of each of them.
        copies: how many of the later blocks a head copies, if it copies any (`copies`).
        initialize: the backbone's own initialisation, for copies of its blocks.
    """

    layout: Layout
    shape: tuple[int, ...]
    later: Sequence[nn.Module]
    later_shapes: Sequence[tuple[int, ...]]
    copies: int
    initialize: Callable[[nn.Module], object]


class Head(nn.Module):
    """Activations [B, ...] -> logits [B, classes]."""

    def __init__(self, layers: nn.Sequential) -> None:
        super().__init__()
        self.layers = layers

    def forward(self, x: Tensor) -> Tensor:
        """Logits of a batch of activations."""
        logits: Tensor = self.layers(x)
        return logits

    def initialize(self) -> None:
        """Draw all weights afresh, from the global generator."""
        _reset(self.layers)


class AugLocalHead(Head):
    """Fresh copies of later blocks, then a linear classifier (Ma et al., AugLocal, ICLR 2024)."""

    def __init__(self, layers: nn.Sequential, rule: Callable[[nn.Module], object]) -> None:
        super().__init__(layers)
        self.rule = rule

    def initialize(self) -> None:
        """Copies follow the backbone's own rule, adapters and classifier the library's."""
        for name, layer in self.layers.named_children():
            (self.rule if name.startswith("copy") else _reset)(layer)


def copies(config: HeadConfig, index: int, count: int, later: int) -> int:
    """How many of the `later` blocks behind module `index` (from 0) of `count` its head copies.

    Linearly fewer towards the output (Ma et al., 2024), or equally many (docs/results/
    reconciliation.md); 0 for heads that copy none.
    """
    if config.name != "auglocal":
        return 0
    shrinks = 1 - index / (count - 1) if config.taper else 1.0
    return min(max(1, math.ceil(config.depth * shrinks)), later)


def build(config: HeadConfig, site: Site, num_classes: int) -> Head:
    """The auxiliary head of one module, on the meta device, uninitialised.

    Raises:
        ValueError: a copied block does not fit these activations, or too few classes.
    """
    with torch.device("meta"):
        if config.name == "auglocal":
            return _auglocal(site, num_classes)
        if config.name == "linear":
            return Head(_linear(site.layout, site.shape, num_classes))
        if config.name == "etf":
            return Head(_etf(site.layout, site.shape, num_classes))
        build_map_head = _mlp if config.name == "mlp" else _conv
        to_map = ToMap(site.layout, site.shape)
        return Head(nn.Sequential(to_map, *build_map_head(*to_map.map_shape, num_classes)))


class ToMap(nn.Module):
    """Any activations [B, ...] -> feature maps [B, C, H, W]."""

    def __init__(self, layout: Layout, shape: tuple[int, ...]) -> None:
        super().__init__()
        self.layout = layout
        self.norm = nn.LayerNorm(shape[-1]) if layout == "NTC" else nn.Identity()
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
        """The same numbers, on their grid (a class token is left out)."""
        if self.layout == "NHWC":
            return x.permute(0, 3, 1, 2)
        if self.layout == "NTC":
            _, height, width = self.map_shape
            x = self.norm(x)[:, -height * width :].transpose(1, 2)
        return x.reshape(len(x), *self.map_shape) if self.layout != "NCHW" else x


class MeanPool(nn.Module):
    """Mean over all positions: [B, ...] -> [B, C]."""

    def __init__(self, layout: Layout) -> None:
        super().__init__()
        self.axes = POSITIONS[layout]

    def forward(self, x: Tensor) -> Tensor:
        """The mean over the axes of the layout."""
        return x.mean(self.axes) if self.axes else x


def _channels(layout: Layout, shape: tuple[int, ...]) -> int:
    return shape[0] if layout in ("NCHW", "NCT", "NC") else shape[-1]


def _linear(layout: Layout, shape: tuple[int, ...], num_classes: int) -> nn.Sequential:
    """Global average pool and one linear layer."""
    width = _channels(layout, shape)
    norm = [nn.LayerNorm(width)] if layout == "NTC" else []
    return nn.Sequential(*norm, MeanPool(layout), nn.Linear(width, num_classes))


def _etf(layout: Layout, shape: tuple[int, ...], num_classes: int) -> nn.Sequential:
    """Global average pool and fixed vertices: no parameter, not even a norm's."""
    width = _channels(layout, shape)
    norm = [nn.LayerNorm(width, elementwise_affine=False)] if layout == "NTC" else []
    return nn.Sequential(*norm, MeanPool(layout), SimplexETF(width, num_classes))


def _mlp(channels: int, height: int, width: int, num_classes: int) -> list[nn.Module]:
    """DGL's mlp-sr (Belilovsky et al., 2020): three 1x1 convolutions on a map of a quarter of the
    side, a 2x2 pool, three linear layers (here of the map's width)."""
    small = (math.ceil(height / 4), math.ceil(width / 4))
    pool = (min(2, small[0]), min(2, small[1]))
    layers: list[nn.Module] = [nn.AdaptiveAvgPool2d(small)]
    for _ in range(3):
        layers += [nn.Conv2d(channels, channels, 1, bias=False), nn.BatchNorm2d(channels)]
        layers += [nn.ReLU()]
    layers += [nn.AdaptiveAvgPool2d(pool), nn.Flatten()]
    for wide in (channels * pool[0] * pool[1], channels):
        layers += [nn.Linear(wide, channels, bias=False), nn.BatchNorm1d(channels), nn.ReLU()]
    return [*layers, nn.Linear(channels, num_classes)]


def _conv(channels: int, height: int, width: int, num_classes: int) -> list[nn.Module]:
    """InfoPro's 1c2f (Wang et al., ICLR 2021): one 3x3 convolution, pool, two linear layers."""
    return [
        nn.Conv2d(channels, 128, 3, padding=1, bias=False),
        nn.BatchNorm2d(128),
        nn.ReLU(),
        MeanPool("NCHW"),
        nn.Linear(128, 128),
        nn.ReLU(),
        nn.Linear(128, num_classes),
    ]


def _auglocal(site: Site, num_classes: int) -> AugLocalHead:
    """Later blocks at even distances, always ending with the last; adapters where neighbours do
    not fit."""
    chosen = [(i + 1) * len(site.later) // site.copies - 1 for i in range(site.copies)]
    layers = nn.Sequential()
    shape = site.shape
    for i, index in enumerate(chosen):
        wanted = site.later_shapes[index]
        if shape != wanted:
            layers.add_module(f"adapter{i}", _adapter(site.layout, shape, wanted))
        block = copy.deepcopy(site.later[index])
        layers.add_module(f"copy{i}", block)
        shape = output_shape(block, wanted)
    layers.add_module("classifier", _linear(site.layout, shape, num_classes))
    return AugLocalHead(layers, site.initialize)


def _adapter(layout: Layout, shape: tuple[int, ...], wanted: tuple[int, ...]) -> nn.Module:
    """Pool and project activations to the shape that a later block expects."""
    if layout == "NCHW":
        return nn.Sequential(
            nn.AdaptiveAvgPool2d(wanted[1:]),
            nn.Conv2d(shape[0], wanted[0], 1, bias=False),
            nn.BatchNorm2d(wanted[0]),
            nn.ReLU(),
        )
    if layout == "NCT":
        return nn.Sequential(
            nn.AdaptiveAvgPool1d(wanted[1]),
            nn.Conv1d(shape[0], wanted[0], 1, bias=False),
            nn.BatchNorm1d(wanted[0]),
            nn.ReLU(),
        )
    if layout == "NHWC":
        to_map = ToMap("NHWC", shape)
        pool = nn.AdaptiveAvgPool2d(wanted[:-1])
        return nn.Sequential(to_map, pool, ToChannelsLast(), nn.Linear(shape[-1], wanted[-1]))
    if shape[:-1] != wanted[:-1]:
        raise ValueError(f"no adapter from {layout} activations {shape} to {wanted}")
    return nn.Linear(shape[-1], wanted[-1])


class ToChannelsLast(nn.Module):
    """[B, C, H, W] -> [B, H, W, C]."""

    def forward(self, x: Tensor) -> Tensor:
        """The same numbers, channels last."""
        return x.permute(0, 2, 3, 1)


def output_shape(module: nn.Module, shape: tuple[int, ...]) -> tuple[int, ...]:
    """One sample's output shape of a meta module, from one sample's input shape."""
    probe = copy.deepcopy(module).eval()
    with torch.no_grad():
        return tuple(probe(torch.empty(1, *shape, device="meta")).shape[1:])


def _reset(module: nn.Module) -> None:
    for layer in module.modules():
        reset = getattr(layer, "reset_parameters", None)
        if reset is not None:
            reset()
