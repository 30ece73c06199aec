"""Every layer of a multi-layer perceptron is a block."""

import pytest
import torch
from torch import nn

from pipeline_local.models import mlp
from pipeline_local.models.backbone import materialize, shapes


def build(**args):
    with torch.device("meta"):
        return mlp.build(10, (1, 4, 6), **args)


def test_blocks_and_shapes():
    backbone = build(hidden=5, depth=3)
    assert [block.name for block in backbone.blocks] == ["layer1", "layer2", "layer3"]
    assert shapes(backbone, (2, 1, 4, 6)) == [(2, 5)] * 3
    assert backbone.layout == "NC"


@pytest.mark.parametrize(("activation", "function"), [("relu", nn.ReLU()), ("gelu", nn.GELU())])
def test_a_block_is_one_layer_and_its_activation(activation, function):
    block = build(hidden=5, depth=1, activation=activation).blocks[0]
    layer = materialize(block.module, build().initialize, 1, torch.device("cpu"), torch.float32)
    x = torch.randn(3, 1, 4, 6)
    wanted = function(x.reshape(3, 24) @ layer.linear.weight.T + layer.linear.bias)
    torch.testing.assert_close(layer(x), wanted)
