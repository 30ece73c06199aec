"""What is a VGG's own: a block is a convolution and all that follows it."""

import pytest
from torch import nn

from pipeline_local.models import registry


@pytest.mark.parametrize(
    ("name", "layers"),
    [
        ("vgg11", [nn.Conv2d, nn.ReLU]),
        ("vgg11_bn", [nn.Conv2d, nn.BatchNorm2d, nn.ReLU]),
    ],
)
def test_blocks_start_with_a_convolution_and_end_before_the_next(name, layers):
    backbone = registry.build(name, {}, 7, (3, 32, 32))
    kinds = [[type(layer) for layer in block.module.children()] for block in backbone.blocks]
    pooled = [*layers, nn.MaxPool2d]
    assert kinds == [pooled, pooled, layers, pooled, layers, pooled, layers, pooled]
    assert [block.name for block in backbone.blocks] == [f"conv{i}" for i in range(1, 9)]
