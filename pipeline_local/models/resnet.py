"""torchvision's ResNet, ResNeXt and Wide ResNet: the stem and every residual block are blocks."""

from dataclasses import replace

from torch import nn
from torchvision.models.resnet import BasicBlock, Bottleneck

from pipeline_local.layout import ImageShape
from pipeline_local.models.backbone import Backbone
from pipeline_local.models.torchvision_models import (
    cut,
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
    rule = initialize_with_zero_residual if zero_init_residual else initialize_convolutions
    backbone = cut(model, (BasicBlock, Bottleneck), ("avgpool", "flatten", "fc"), rule)
    stem, *others = backbone.blocks
    return replace(backbone, blocks=(replace(stem, name="stem"), *others))


def initialize_with_zero_residual(module: nn.Module) -> None:
    """torchvision's rule for ResNets, but every residual branch starts as zero (Goyal et al.,
    2017)."""
    initialize_convolutions(module)
    for layer in module.modules():
        if isinstance(layer, Bottleneck):
            nn.init.zeros_(layer.bn3.weight)
        elif isinstance(layer, BasicBlock):
            nn.init.zeros_(layer.bn2.weight)
