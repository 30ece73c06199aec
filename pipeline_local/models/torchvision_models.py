"""What the families of torchvision have in common.

A model is built by torchvision itself, on the meta device, and taken apart: wrappers keep the names
of its tensors, so weights travel in both directions under `strict=True`. Because blocks get their
memory one by one, torchvision's initialisation is repeated in each family as rules per layer.
"""

from typing import Any

import torchvision
from torch import Tensor, nn

from pipeline_local.errors import UserError

ImageShape = tuple[int, int, int]


class Steps(nn.Module):
    """Submodules under their own names, run in order."""

    def __init__(self, **steps: nn.Module) -> None:
        super().__init__()
        for name, step in steps.items():
            self.add_module(name, step)

    def forward(self, x: Tensor) -> Tensor:
        """Through every step."""
        for step in self.children():
            x = step(x)
        return x


def whole(name: str, num_classes: int, image_shape: ImageShape, **args: Any) -> Any:  # noqa: ANN401
    """torchvision's own model of this name; arguments that are None keep torchvision's default.

    Raises:
        UserError: the images do not have three channels.
    """
    check_channels(name, image_shape)
    given = {key: value for key, value in args.items() if value is not None}
    return torchvision.models.get_model(name, weights=None, num_classes=num_classes, **given)


def check_channels(name: str, image_shape: ImageShape) -> None:
    """torchvision's models take colour images only.

    Raises:
        UserError: the images do not have three channels.
    """
    if image_shape[0] != 3:
        raise UserError(
            f"model.name: {name} takes images of 3 channels, got data with {image_shape[0]};"
            f" choose resnet20..110, mlp, or other data"
        )


def initialize_convolutions(module: nn.Module) -> None:
    """Kaiming normal (fan out) weights and zero biases, as in torchvision's ResNet and VGG."""
    for layer in module.modules():
        if isinstance(layer, nn.Conv2d):
            nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu")
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)
