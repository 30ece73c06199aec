"""torchvision's Swin Transformer: patches, transformer blocks and patch mergings are blocks."""

import math
from typing import Annotated

from pydantic import Field
from torch import nn
from torchvision.models.swin_transformer import (
    ShiftedWindowAttention,
    ShiftedWindowAttentionV2,
    SwinTransformerBlock,
)
from torchvision.ops import StochasticDepth

from pipeline_local.layout import ImageShape
from pipeline_local.models.backbone import Backbone, reset_parameters
from pipeline_local.models.torchvision_models import (
    Probability,
    cut,
    whole,
)


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
    head = ("norm", "permute", "avgpool", "flatten", "head")
    return cut(model, (SwinTransformerBlock,), head, initialize, "NHWC")


def _set_stochastic_depth(model: nn.Module, last: float) -> None:
    """torchvision's builders refuse this argument, so its rule is applied afterwards."""
    layers = [layer for layer in model.modules() if isinstance(layer, StochasticDepth)]
    for i, layer in enumerate(layers):
        layer.p = last * float(i) / (len(layers) - 1)


def initialize(module: nn.Module) -> None:
    """torchvision's rule for Swins of both versions."""
    reset_parameters(module)
    for layer in module.modules():
        if isinstance(layer, nn.Linear):
            nn.init.trunc_normal_(layer.weight, std=0.02)
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)
        elif isinstance(layer, ShiftedWindowAttention):
            _initialize_positions(layer)


def _initialize_positions(attention: ShiftedWindowAttention) -> None:
    if isinstance(attention, ShiftedWindowAttentionV2):
        attention.define_relative_position_bias_table()  # constant: the table of coordinates
        nn.init.constant_(attention.logit_scale, math.log(10))
    else:
        nn.init.trunc_normal_(attention.relative_position_bias_table, std=0.02)
    attention.define_relative_position_index()
