"""What is a VGG's own: a block is a convolution and all that follows it."""

import pytest
from torch import nn

from pipeline_local.errors import UserError
from pipeline_local.models import registry
from pipeline_local.models.backbone import shapes


@pytest.mark.parametrize(
    ("name", "layers"),
    [
        ("vgg11", [nn.Conv2d, nn.ReLU]),
        ("vgg11_bn", [nn.Conv2d, nn.BatchNorm2d, nn.ReLU]),
    ],
)
def test_blocks_start_with_a_convolution_and_end_before_the_next(name, layers):
    backbone = registry.build(name, {}, 7, (3, 32, 32))[0]
    kinds = [[type(layer) for layer in block.module.children()] for block in backbone.blocks]
    pooled = [*layers, nn.MaxPool2d]
    assert kinds == [pooled, pooled, layers, pooled, layers, pooled, layers, pooled]
    assert [block.name for block in backbone.blocks] == [f"conv{i}" for i in range(1, 9)]


@pytest.mark.parametrize(("depth", "name"), [(11, "vgg11_bn"), (16, "vgg16_bn")])
def test_a_small_vgg_has_torchvisions_convolutions_under_one_linear_layer(depth, name):
    small = registry.build("vgg", {"depth": depth}, 7, (3, 32, 32))[0]
    large = registry.build(name, {}, 7, (3, 32, 32))[0]
    for mine, theirs in zip(small.blocks, large.blocks, strict=True):
        assert str(mine.module) == str(theirs.module)
        assert list(mine.module.state_dict()) == list(theirs.module.state_dict())
    parameters = dict(small.classifier.module.named_parameters())
    assert {k: tuple(v.shape) for k, v in parameters.items()} == {
        "classifier.weight": (7, 512),
        "classifier.bias": (7,),
    }


def test_a_small_vgg_is_as_wide_as_asked():
    backbone = registry.build("vgg", {"width": 4, "batch_norm": False}, 7, (3, 32, 32))[0]
    channels = [shape[1] for shape in shapes(backbone, (1, 3, 32, 32))]
    assert channels == [4, 8, 16, 16, 32, 32, 32, 32]
    kinds = {type(layer) for block in backbone.blocks for layer in block.module.children()}
    assert kinds == {nn.Conv2d, nn.ReLU, nn.MaxPool2d}


@pytest.mark.parametrize(
    ("args", "shape", "message"),
    [
        ({"depth": 12}, (3, 32, 32), r"model\.depth: should be 11, 13, 16 or 19, got 12"),
        ({}, (1, 32, 32), "vgg takes images of 3 channels, got data with 1"),
        ({}, (3, 8, 8), "vgg cannot take images of 3x8x8.*too small"),
    ],
)
def test_mistakes(args, shape, message):
    with pytest.raises(UserError, match=message):
        registry.build("vgg", args, 7, shape)
