"""torchvision's VGG: a convolution with all that follows it, up to the next one, is a block."""

from dataclasses import replace
from typing import Annotated, Literal

from pydantic import Field
from torch import nn
from torchvision.models.vgg import VGG, cfgs, make_layers

from pipeline_local.layout import ImageShape
from pipeline_local.models.backbone import Backbone
from pipeline_local.models.torchvision_models import (
    Probability,
    check_channels,
    cut,
    initialize_fan_out,
    whole,
)


def build(
    name: str,
    num_classes: int,
    image_shape: ImageShape,
    dropout: Probability = 0.5,
) -> Backbone:
    """torchvision's VGG of this name; `dropout` is in the classifier, which has three layers."""
    return _cut(whole(name, num_classes, image_shape, dropout=dropout))


def build_small(
    num_classes: int,
    image_shape: ImageShape,
    depth: Literal[11, 13, 16, 19] = 11,
    width: Annotated[int, Field(ge=1)] = 64,
    batch_norm: bool = True,
) -> Backbone:
    """A VGG for small images: torchvision's convolutions under one global pool and linear layer.

    Args:
        depth: the convolutions of vgg11, 13, 16 or 19; their hidden linear layers are left out.
        width: channels of the first convolution; the later ones keep their ratio to it.

    Raises:
        UserError: the images do not have three channels.
    """
    check_channels("vgg", image_shape)
    plan = cfgs[{11: "A", 13: "B", 16: "D", 19: "E"}[depth]]
    channels = [item if isinstance(item, str) else item * width // 64 for item in plan]
    model = VGG(make_layers(channels, batch_norm), num_classes, init_weights=False)
    model.avgpool = nn.AdaptiveAvgPool2d(1)
    model.classifier = nn.Linear(512 * width // 64, num_classes)
    return _cut(model)


def _cut(model: nn.Module) -> Backbone:
    head = ("avgpool", "flatten", "classifier")
    backbone = cut(model, (nn.Conv2d,), head, initialize_fan_out)
    named = enumerate(backbone.blocks, start=1)
    return replace(backbone, blocks=tuple(replace(b, name=f"conv{i}") for i, b in named))
