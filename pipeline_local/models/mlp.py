"""A multi-layer perceptron: every layer is a block."""

from math import prod
from typing import Literal

from torch import Tensor, nn

from pipeline_local.config import Positive
from pipeline_local.models.backbone import Backbone, Block, reset_parameters

Activation = Literal["relu", "gelu"]


class Layer(nn.Module):
    """[B, ...] -> [B, outputs]: flatten, one linear layer, one activation."""

    def __init__(self, inputs: int, outputs: int, activation: Activation) -> None:
        super().__init__()
        self.linear = nn.Linear(inputs, outputs)
        self.activation = {"relu": nn.ReLU, "gelu": nn.GELU}[activation]()

    def forward(self, x: Tensor) -> Tensor:
        """Flattening is free where the input is flat already."""
        y: Tensor = self.activation(self.linear(x.flatten(1)))
        return y


def build(
    num_classes: int,
    image_shape: tuple[int, int, int],
    hidden: Positive = 256,
    depth: Positive = 4,
    activation: Activation = "relu",
) -> Backbone:
    """`depth` hidden layers of `hidden` units, then a linear classifier."""
    widths = [prod(image_shape)] + [hidden] * depth
    blocks = [
        Block(f"layer{i + 1}", Layer(widths[i], hidden, activation), f"layer{i + 1}.")
        for i in range(depth)
    ]
    classifier = Block("classifier", nn.Linear(hidden, num_classes), "classifier.")
    return Backbone(tuple(blocks), classifier, reset_parameters, "NC")
