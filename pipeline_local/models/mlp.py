"""A multi-layer perceptron: every layer is a block."""

from math import prod
from typing import Literal

from torch import nn

from pipeline_local.models.backbone import Backbone, Block, reset_parameters


def build(
    image_shape: tuple[int, int, int],
    num_classes: int,
    hidden: int = 256,
    depth: int = 4,
    activation: Literal["relu", "gelu"] = "relu",
) -> Backbone:
    """`depth` hidden layers of `hidden` units, then a linear classifier.

    Raises:
        ValueError: no layer, no unit, or an unknown activation.
    """
    if depth < 1 or hidden < 1 or activation not in ("relu", "gelu"):
        raise ValueError(
            f"depth {depth} (>= 1), hidden {hidden} (>= 1), activation {activation} (relu, gelu)"
        )
    widths = [prod(image_shape)] + [hidden] * depth
    blocks = []
    for i in range(depth):
        act = nn.GELU() if activation == "gelu" else nn.ReLU()
        layers: list[nn.Module] = [nn.Linear(widths[i], widths[i + 1]), act]
        if i == 0:
            layers.insert(0, nn.Flatten())
        blocks.append(Block(f"layer{i + 1}", nn.Sequential(*layers), f"layer{i + 1}."))
    classifier = Block("classifier", nn.Linear(hidden, num_classes), "classifier.")
    return Backbone(tuple(blocks), classifier, reset_parameters, "NC")
