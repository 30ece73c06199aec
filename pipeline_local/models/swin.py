"""torchvision's Swin Transformer: patches, transformer blocks and patch mergings are blocks."""

from collections.abc import Iterator
from typing import Annotated

from pydantic import Field
from torch import nn
from torchvision.models.swin_transformer import ShiftedWindowAttention
from torchvision.ops import StochasticDepth

from pipeline_local.models.backbone import Backbone, Block, reset_parameters
from pipeline_local.models.torchvision_models import ImageShape, Steps, whole

Probability = Annotated[float, Field(ge=0, le=1)]


def build(
    name: str,
    num_classes: int,
    image_shape: ImageShape,
    dropout: Probability = 0.0,
    attention_dropout: Probability = 0.0,
    stochastic_depth_prob: Probability | None = None,
    mlp_ratio: Annotated[float, Field(gt=0)] = 4.0,
) -> Backbone:
    """torchvision's Swin of this name; the further arguments are torchvision's own.

    Args:
        stochastic_depth_prob: of the last block, linear in depth; None: the name's own.
    """
    model = whole(
        name,
        num_classes,
        image_shape,
        dropout=dropout,
        attention_dropout=attention_dropout,
        mlp_ratio=mlp_ratio,
    )
    if stochastic_depth_prob is not None:
        _set_stochastic_depth(model, stochastic_depth_prob)
    head = Steps(
        norm=model.norm,
        permute=model.permute,
        avgpool=model.avgpool,
        flatten=model.flatten,
        head=model.head,
    )
    classifier = Block("classifier", head)
    return Backbone(tuple(_blocks(model.features)), classifier, initialize, "NHWC")


def _blocks(features: nn.Sequential) -> Iterator[Block]:
    """Patches or a patch merging at even places, a group of transformer blocks at odd ones."""
    for i, part in enumerate(features):
        name = f"features.{i}"
        if i % 2 == 0:
            yield Block(name, part, f"{name}.")
        else:
            for k, block in part.named_children():
                yield Block(f"{name}.{k}", block, f"{name}.{k}.")


def _set_stochastic_depth(model: nn.Module, last: float) -> None:
    """torchvision's builders refuse this argument, so its rule is applied afterwards."""
    layers = [layer for layer in model.modules() if isinstance(layer, StochasticDepth)]
    for i, layer in enumerate(layers):
        layer.p = last * float(i) / (len(layers) - 1)


def initialize(module: nn.Module) -> None:
    """torchvision's rule for Swins."""
    reset_parameters(module)
    for layer in module.modules():
        if isinstance(layer, nn.Linear):
            nn.init.trunc_normal_(layer.weight, std=0.02)
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)
        elif isinstance(layer, ShiftedWindowAttention):
            nn.init.trunc_normal_(layer.relative_position_bias_table, std=0.02)
            layer.define_relative_position_index()
