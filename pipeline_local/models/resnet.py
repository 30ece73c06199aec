"""torchvision's ResNet, ResNeXt and Wide ResNet: the stem and every residual block are blocks."""

from torch import nn
from torchvision.models.resnet import BasicBlock, Bottleneck

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
    zero_init_residual: bool = False,
    groups: int | None = None,
    width_per_group: int | None = None,
    replace_stride_with_dilation: tuple[bool, bool, bool] | None = None,
) -> Backbone:
    """torchvision's ResNet of this name; the further arguments are torchvision's own."""
    model = whole(
        name,
        num_classes,
        image_shape,
        groups=groups,
        width_per_group=width_per_group,
        replace_stride_with_dilation=replace_stride_with_dilation,
    )
    stem = Steps(conv1=model.conv1, bn1=model.bn1, relu=model.relu, maxpool=model.maxpool)
    blocks = [Block("stem", stem)]
    for group in ("layer1", "layer2", "layer3", "layer4"):
        for i, block in enumerate(getattr(model, group)):
            blocks.append(Block(f"{group}.{i}", block, f"{group}.{i}."))
    head = Steps(avgpool=model.avgpool, flatten=nn.Flatten(), fc=model.fc)
    rule = initialize_with_zero_residual if zero_init_residual else initialize
    return Backbone(tuple(blocks), Block("classifier", head), rule, "NCHW")


def initialize(module: nn.Module) -> None:
    """torchvision's rule for ResNets."""
    reset_parameters(module)
    initialize_convolutions(module)


def initialize_with_zero_residual(module: nn.Module) -> None:
    """The same, but every residual branch starts as zero (Goyal et al., 2017)."""
    initialize(module)
    for layer in module.modules():
        if isinstance(layer, Bottleneck):
            nn.init.zeros_(layer.bn3.weight)
        elif isinstance(layer, BasicBlock):
            nn.init.zeros_(layer.bn2.weight)
