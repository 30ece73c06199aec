"""torchvision's Swin Transformer: patches, transformer blocks and patch mergings are blocks."""

import math
from functools import partial
from typing import Annotated

from pydantic import Field
from torch import nn
from torchvision.models.swin_transformer import (
    ShiftedWindowAttention,
    ShiftedWindowAttentionV2,
    SwinTransformerBlock,
)
from torchvision.ops import StochasticDepth

from pipeline_local.models.backbone import Backbone
from pipeline_local.models.torchvision_models import (
    ImageShape,
    Probability,
    cut,
    initializer,
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
    _initialize_linear(module)
    for layer in module.modules():
        if isinstance(layer, ShiftedWindowAttention):
            layer.define_relative_position_index()
        if isinstance(layer, ShiftedWindowAttentionV2):
            layer.define_relative_position_bias_table()  # a constant table of coordinates
            nn.init.constant_(layer.logit_scale, math.log(10))
        elif isinstance(layer, ShiftedWindowAttention):
            nn.init.trunc_normal_(layer.relative_position_bias_table, std=0.02)


_initialize_linear = initializer({nn.Linear: partial(nn.init.trunc_normal_, std=0.02)})
