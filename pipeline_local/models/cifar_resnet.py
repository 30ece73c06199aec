"""ResNets for small images (He et al., 2016, section 4.2): resnet20, 32, 44, 56, 110.

torchvision has none. The stem is one block and each residual block is one, as everyone who cuts
these networks cuts them (ResNet-32: 16 blocks).
"""

from typing import Annotated, Literal

from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional

from pipeline_local.models.backbone import Backbone, Block, reset_parameters

DEPTHS = (20, 32, 44, 56, 110)
Shortcut = Literal["A", "B"]


class Stem(nn.Module):
    """[B, channels, H, W] -> [B, width, H, W]."""

    def __init__(self, channels: int, width: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, width, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)

    def forward(self, x: Tensor) -> Tensor:
        """Convolution, norm, ReLU."""
        return functional.relu(self.bn1(self.conv1(x)))


class BasicBlock(nn.Module):
    """Two 3x3 convolutions and a shortcut: [B, inputs, H, W] -> [B, outputs, H/stride, W/stride].

    Where the width grows, shortcut A subsamples and pads with zero channels on both sides (no
    parameters), B projects with a 1x1 convolution.
    """

    def __init__(self, inputs: int, outputs: int, stride: int, shortcut: Shortcut) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.stride = stride
        self.padding = outputs - inputs
        self.downsample: nn.Module | None = None
        if shortcut == "B" and self.padding:
            project = nn.Conv2d(inputs, outputs, 1, stride, bias=False)
            self.downsample = nn.Sequential(project, nn.BatchNorm2d(outputs))

    def forward(self, x: Tensor) -> Tensor:
        """ReLU(residual + shortcut)."""
        y = self.bn2(self.conv2(functional.relu(self.bn1(self.conv1(x)))))
        return functional.relu(y + self._shortcut(x))

    def _shortcut(self, x: Tensor) -> Tensor:
        if self.downsample is not None:
            projected: Tensor = self.downsample(x)
            return projected
        if not self.padding:
            return x
        before = self.padding // 2
        x = x[:, :, :: self.stride, :: self.stride]
        return functional.pad(x, (0, 0, 0, 0, before, self.padding - before))


class Classifier(nn.Module):
    """[B, C, H, W] -> logits [B, classes]."""

    def __init__(self, width: int, num_classes: int) -> None:
        super().__init__()
        self.fc = nn.Linear(width, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """Global average pool and a linear layer."""
        logits: Tensor = self.fc(x.mean((2, 3)))
        return logits


def build(
    depth: int,
    num_classes: int,
    image_shape: tuple[int, int, int],
    width: Annotated[int, Field(ge=1)] = 16,
    shortcut: Shortcut = "A",
) -> Backbone:
    """A ResNet of 6n+2 layers: three groups of n blocks of width, 2 width and 4 width channels.

    Args:
        depth: one of `DEPTHS`.
        num_classes: outputs of the classifier.
        image_shape: channels (any number), height, width.
        width: channels of the stem and the first group.
        shortcut: A or B, see `BasicBlock`.
    """
    blocks = [Block("stem", Stem(image_shape[0], width))]
    inputs = width
    for group in range(3):
        outputs = width * 2**group
        for i in range((depth - 2) // 6):
            stride = 2 if group and not i else 1
            name = f"layer{group + 1}.{i}"
            blocks.append(Block(name, BasicBlock(inputs, outputs, stride, shortcut), f"{name}."))
            inputs = outputs
    classifier = Block("classifier", Classifier(inputs, num_classes))
    return Backbone(tuple(blocks), classifier, initialize, "NCHW")


def initialize(module: nn.Module) -> None:
    """Kaiming normal (fan out) for convolutions; torch's own for the rest."""
    reset_parameters(module)
    for layer in module.modules():
        if isinstance(layer, nn.Conv2d):
            nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu")
