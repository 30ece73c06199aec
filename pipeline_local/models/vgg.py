"""torchvision's VGG: a convolution with all that follows it, up to the next one, is a block."""

from itertools import pairwise
from typing import Annotated

from pydantic import Field
from torch import nn

from pipeline_local.models.backbone import Backbone, Block, reset_parameters
from pipeline_local.models.torchvision_models import (
    ImageShape,
    Steps,
    initialize_convolutions,
    whole,
)


def build(
    name: str,
    num_classes: int,
    image_shape: ImageShape,
    dropout: Annotated[float, Field(ge=0, le=1)] = 0.5,
) -> Backbone:
    """torchvision's VGG of this name; `dropout` is in the classifier."""
    model = whole(name, num_classes, image_shape, dropout=dropout)
    layers = list(model.features)
    starts = [i for i, layer in enumerate(layers) if isinstance(layer, nn.Conv2d)]
    blocks = []
    for number, (start, end) in enumerate(pairwise([*starts, len(layers)]), start=1):
        part = Steps(**{str(i): layers[i] for i in range(start, end)})
        blocks.append(Block(f"conv{number}", part, "features."))
    head = Steps(avgpool=model.avgpool, flatten=nn.Flatten(), classifier=model.classifier)
    return Backbone(tuple(blocks), Block("classifier", head), initialize, "NCHW")


def initialize(module: nn.Module) -> None:
    """torchvision's rule for VGGs."""
    reset_parameters(module)
    initialize_convolutions(module)
    for layer in module.modules():
        if isinstance(layer, nn.Linear):
            nn.init.normal_(layer.weight, std=0.01)
            nn.init.zeros_(layer.bias)
