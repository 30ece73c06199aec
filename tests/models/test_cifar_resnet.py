"""The small ResNets are those of He et al., 2016, section 4.2."""

import pytest
import torch
from torch import nn
from torch.nn import functional

from pipeline_local.models import cifar_resnet
from pipeline_local.models.backbone import materialize, shapes


def build(depth=20, image_shape=(3, 32, 32), **args):
    with torch.device("meta"):
        return cifar_resnet.build(depth, 10, image_shape, **args)


def fresh(backbone, block):
    return materialize(block.module, backbone.initialize, 1, torch.device("cpu"), torch.float32)


def parameters(backbone):
    blocks = (*backbone.blocks, backbone.classifier)
    return sum(p.numel() for block in blocks for p in block.module.parameters())


@pytest.mark.parametrize(
    ("depth", "millions", "blocks"),
    [(20, 0.27, 10), (32, 0.46, 16), (44, 0.66, 22), (56, 0.85, 28), (110, 1.7, 55)],
)
def test_sizes_of_the_paper(depth, millions, blocks):
    backbone = build(depth)
    assert parameters(backbone) / 1e6 == pytest.approx(millions, rel=0.03)
    assert len(backbone.blocks) == blocks


def test_projections_cost_parameters_and_padding_does_not():
    projections = 16 * 32 + 2 * 32 + 32 * 64 + 2 * 64
    assert parameters(build(shortcut="B")) - parameters(build()) == projections


@pytest.mark.parametrize("image_shape", [(3, 32, 32), (1, 28, 28), (3, 8, 8)])
@pytest.mark.parametrize("shortcut", ["A", "B"])
def test_shapes(image_shape, shortcut):
    _, height, width = image_shape
    got = shapes(build(image_shape=image_shape, shortcut=shortcut, width=4), (2, *image_shape))
    sides = [(-(-height // s), -(-width // s)) for s in (1, 2, 4)]
    wanted = [(2, 4, *sides[0])] * 4 + [(2, 8, *sides[1])] * 3 + [(2, 16, *sides[2])] * 3
    assert got == wanted


def test_padding_shortcut_subsamples_and_centres_the_channels():
    backbone = build(width=4)
    block = fresh(backbone, backbone.blocks[4]).eval()
    nn.init.zeros_(block.conv2.weight)
    x = torch.rand(2, 4, 6, 6)
    y = block(x)
    assert torch.equal(y[:, 2:6], x[:, :, ::2, ::2])
    assert not y[:, :2].any()
    assert not y[:, 6:].any()


def test_residual_block_is_its_formula():
    backbone = build(width=4, shortcut="B")
    b = fresh(backbone, backbone.blocks[4])
    x = torch.randn(2, 4, 6, 6)
    y = functional.relu(b.bn1(functional.conv2d(x, b.conv1.weight, stride=2, padding=1)))
    y = b.bn2(functional.conv2d(y, b.conv2.weight, padding=1))
    project, norm = b.downsample
    wanted = functional.relu(y + norm(functional.conv2d(x, project.weight, stride=2)))
    assert torch.equal(b(x), wanted)


def test_convolutions_start_kaiming_normal_over_the_fan_out():
    backbone = build()
    weight = fresh(backbone, backbone.blocks[7]).conv1.weight  # 32 -> 64 channels
    assert weight.std().item() == pytest.approx((2 / (64 * 9)) ** 0.5, rel=0.05)


def test_classifier_pools_over_the_image():
    backbone = build(width=4)
    head = fresh(backbone, backbone.classifier)
    x = torch.randn(2, 16, 2, 2)
    wanted = functional.linear(x.flatten(2).mean(2), head.fc.weight, head.fc.bias)
    torch.testing.assert_close(head(x), wanted)
