"""The CIFAR ResNets: sizes of the paper, cuts of the literature."""

import pytest
import torch

from pipeline_local.models import cifar_resnet, registry
from pipeline_local.models.backbone import materialize, shapes

CPU = torch.device("cpu")


def num_parameters(backbone):
    blocks = [*backbone.blocks, backbone.classifier]
    return sum(p.numel() for block in blocks for p in block.module.parameters())


@pytest.mark.parametrize(
    ("depth", "blocks", "millions"),
    [(20, 10, 0.27), (32, 16, 0.46), (44, 22, 0.66), (56, 28, 0.85), (110, 55, 1.7)],
)
def test_size_of_the_paper(depth, blocks, millions):
    """He et al., 2016, table 6."""
    backbone = registry.build(f"resnet{depth}", {}, 10, (3, 32, 32))
    assert len(backbone.blocks) == blocks
    assert num_parameters(backbone) / 1e6 == pytest.approx(millions, abs=0.03)


@pytest.mark.parametrize("shortcut", ["A", "B"])
@pytest.mark.parametrize(("channels", "size"), [(1, 8), (3, 32), (3, 20)])
def test_shapes(shortcut, channels, size):
    args = {"width": 4, "shortcut": shortcut}
    backbone = registry.build("resnet20", args, 10, (channels, size, size))
    x = torch.randn(2, channels, size, size)
    expected = []
    for block in backbone.blocks:
        module = materialize(block.module, backbone.initialize, 0, CPU, torch.float32)
        x = module(x)
        expected.append(x.shape)
    assert shapes(backbone, (2, channels, size, size)) == expected
    assert expected[0][1:] == (4, size, size)
    assert expected[-1][1] == 16


def test_shortcut_a_pads_and_strides():
    block = cifar_resnet.BasicBlock(2, 4, stride=2, shortcut="A")
    x = torch.arange(32.0).reshape(1, 2, 4, 4)
    shortcut = block._shortcut(x)
    assert shortcut.shape == (1, 4, 2, 2)
    assert torch.equal(shortcut[:, 1:3], x[:, :, ::2, ::2])
    assert shortcut[:, 0].abs().sum() == shortcut[:, 3].abs().sum() == 0


def test_he_initialisation():
    backbone = registry.build("resnet20", {}, 10, (3, 32, 32))
    module = materialize(backbone.blocks[5].module, backbone.initialize, 0, CPU, torch.float32)
    weight = module.conv2.weight
    assert weight.std().item() == pytest.approx((2 / (weight.shape[0] * 9)) ** 0.5, rel=0.05)
    assert torch.equal(module.bn1.weight, torch.ones_like(module.bn1.weight))
