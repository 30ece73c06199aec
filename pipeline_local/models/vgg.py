"""torchvision's VGG: a convolution with all that follows it, up to the next one, is a block."""

from itertools import pairwise
from typing import Annotated, Any, Literal

from pydantic import Field
from torch import nn
from torchvision.models.vgg import cfgs, make_layers

from pipeline_local.models.backbone import Backbone, Block, reset_parameters
from pipeline_local.models.torchvision_models import (
    ImageShape,
    Steps,
    check_channels,
    initialize_convolutions,
    whole,
)


def build(
    name: str,
    num_classes: int,
    image_shape: ImageShape,
    dropout: Annotated[float, Field(ge=0, le=1)] = 0.5,
) -> Backbone:
    """torchvision's VGG of this name; `dropout` is in the classifier, which has three layers."""
    model = whole(name, num_classes, image_shape, dropout=dropout)
    head = Steps(avgpool=model.avgpool, flatten=nn.Flatten(), classifier=model.classifier)
    return _cut(list(model.features), head)


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
    layers: Any = make_layers(channels, batch_norm)
    pool, fc = nn.AdaptiveAvgPool2d(1), nn.Linear(512 * width // 64, num_classes)
    return _cut(list(layers), Steps(avgpool=pool, flatten=nn.Flatten(), classifier=fc))


def _cut(layers: list[nn.Module], head: nn.Module) -> Backbone:
    starts = [i for i, layer in enumerate(layers) if isinstance(layer, nn.Conv2d)]
    blocks = []
    for number, (start, end) in enumerate(pairwise([*starts, len(layers)]), start=1):
        part = Steps(**{str(i): layers[i] for i in range(start, end)})
        blocks.append(Block(f"conv{number}", part, "features."))
    return Backbone(tuple(blocks), Block("classifier", head), initialize, "NCHW")


def initialize(module: nn.Module) -> None:
    """torchvision's rule for VGGs."""
    reset_parameters(module)
    initialize_convolutions(module)
    for layer in module.modules():
        if isinstance(layer, nn.Linear):
            nn.init.normal_(layer.weight, std=0.01)
            nn.init.zeros_(layer.bias)
