"""Heads of a few layers: linear, fixed vertices, and the small networks of DGL and InfoPro."""

import math
from typing import Annotated

from pydantic import Field
from torch import nn

from pipeline_local.learning.heads.etf import SimplexETF
from pipeline_local.learning.heads.head import HEADS, Head, Site
from pipeline_local.learning.heads.layers import MeanPool, ToMap, channels, linear_head, one_conv


@HEADS.add("linear")
def linear(site: Site) -> Head:
    """A global average pool and one linear layer; for dense outputs, one at each position."""
    return Head(linear_head(site.layout, site.shape, site.output_shape))


class Etf:
    """The registry entry for heads without parameters."""

    learns = False

    def __call__(self, site: Site) -> Head:
        """Build a global average pool and a `SimplexETF`; even its norm has no parameters."""
        width = channels(site.layout, site.shape)
        norm = [nn.LayerNorm(width, elementwise_affine=False)] if site.layout == "NTC" else []
        vertices = SimplexETF(width, site.num_outputs)
        return Head(nn.Sequential(*norm, MeanPool(site.layout), vertices))


HEADS.add("etf", Etf())


@HEADS.add("mlp")
def mlp(site: Site) -> Head:
    """DGL's mlp-sr (Belilovsky et al., 2020): three 1x1 convolutions on a map with a quarter of the
    side, a 2x2 pool, and three linear layers, here as wide as the map has channels."""
    to_map = ToMap(site.layout, site.shape)
    maps, height, width = to_map.map_shape
    small = (math.ceil(height / 4), math.ceil(width / 4))
    pool = (min(2, small[0]), min(2, small[1]))
    layers: list[nn.Module] = [to_map, nn.AdaptiveAvgPool2d(small)]
    for _ in range(3):
        layers += [nn.Conv2d(maps, maps, 1, bias=False), nn.BatchNorm2d(maps), nn.ReLU()]
    layers += [nn.AdaptiveAvgPool2d(pool), nn.Flatten()]
    for wide in (maps * pool[0] * pool[1], maps):
        layers += [nn.Linear(wide, maps, bias=False), nn.BatchNorm1d(maps), nn.ReLU()]
    return Head(nn.Sequential(*layers, nn.Linear(maps, site.num_outputs)))


@HEADS.add("conv")
def conv(
    site: Site,
    *,
    width: Annotated[int, Field(ge=1)] = 128,
    stride: Annotated[int, Field(ge=1)] = 1,
) -> Head:
    """InfoPro's 1c2f (Wang et al., ICLR 2021): a 3x3 convolution, a pool and two linear layers."""
    return Head(one_conv(site.layout, site.shape, width, stride, 128, site.num_outputs))
