"""Narrow AugLocal heads: later blocks at a part of their width.

A head of its own, named `head.name=python:experiments.narrow:narrow`. For ResNets of small images:
a 1x1 convolution brings the activations to a part of their channels, then come as many blocks as
`head.depth`, at even distances among the later ones, each at that part of its width.
"""

import itertools
from typing import Annotated

from pydantic import Field
from torch import nn

from pipeline_local.learning.heads.head import Site
from pipeline_local.models.cifar_resnet import BasicBlock


def narrow(
    site: Site,
    *,
    depth: Annotated[int, Field(ge=1)] = 4,
    width: Annotated[float, Field(gt=0)] = 0.5,
) -> nn.Module:
    """Later blocks at `width` of their channels, between an adapter and a linear classifier."""
    depth = min(depth, len(site.later))
    chosen = [(i + 1) * len(site.later) // depth - 1 for i in range(depth)]
    shapes = [*(site.later_shapes[index] for index in chosen), site.later_shapes[chosen[-1] + 1]]
    part = [max(1, round(shape[0] * width)) for shape in shapes]
    layers: list[nn.Module] = [
        nn.AdaptiveAvgPool2d(shapes[0][1:]),
        nn.Conv2d(site.shape[0], part[0], 1, bias=False),
        nn.BatchNorm2d(part[0]),
        nn.ReLU(),
    ]
    for i, (before, after) in enumerate(itertools.pairwise(shapes)):
        stride = before[1] // after[1]
        layers.append(BasicBlock(part[i], part[i + 1], stride, "B"))
    layers += [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(part[-1], site.num_outputs)]
    return nn.Sequential(*layers)
