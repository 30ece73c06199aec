"""What is each family's own: its cut, its probabilities, its norms."""

import pytest
import torch
import torchvision
from torch import nn
from torchvision.ops import StochasticDepth

from pipeline_local.errors import UserError
from pipeline_local.models import registry

RGB = (3, 64, 64)


def build(name, shape=RGB, **args):
    return registry.build(name, args, 7, shape)[0]


def layers(backbone, kind):
    blocks = (*backbone.blocks, backbone.classifier)
    return [m for block in blocks for m in block.module.modules() if isinstance(m, kind)]


@pytest.mark.parametrize(
    ("name", "names"),
    [
        ("alexnet", [f"features.{i}" for i in (0, 3, 6, 8, 10)]),
        ("squeezenet1_1", [f"features.{i}" for i in (0, 3, 4, 6, 7, 9, 10, 11, 12)]),
        ("convnext_tiny", ["features.0", "features.1.0", "features.1.1", "features.1.2",
                           "features.2"]),
        ("densenet121", ["features.conv0"]
         + [f"features.denseblock1.denselayer{i}" for i in range(1, 7)] + ["features.transition1"]),
        ("regnet_y_400mf", ["stem", "trunk_output.block1.block1-0"]),
        ("shufflenet_v2_x0_5", ["conv1", "stage2.0", "stage2.1"]),
        ("googlenet", ["conv1", "conv2", "conv3", "inception3a"]),
    ],
)  # fmt: skip
def test_natural_units_are_blocks(name, names):
    assert [block.name for block in build(name).blocks[: len(names)]] == names


@pytest.mark.parametrize(
    ("name", "args"),
    [
        ("convnext_small", {}),
        ("efficientnet_v2_s", {"stochastic_depth_prob": 0.4}),
        ("swin_v2_s", {}),
    ],
)
def test_stochastic_depth_is_torchvisions(name, args):
    with torch.device("meta"):
        model = torchvision.models.get_model(name, **args)
    wanted = [m.p for m in model.modules() if isinstance(m, StochasticDepth)]
    assert [m.p for m in layers(build(name, **args), StochasticDepth)] == wanted
    assert wanted[-1] > 0.2


@pytest.mark.parametrize("name", ["efficientnet_b5", "mobilenet_v3_large", "efficientnet_v2_s"])
def test_batch_norms_keep_momentum_and_epsilon(name):
    with torch.device("meta"):
        model = torchvision.models.get_model(name)
    wanted = [(m.eps, m.momentum) for m in model.modules() if isinstance(m, nn.BatchNorm2d)]
    assert [(m.eps, m.momentum) for m in layers(build(name), nn.BatchNorm2d)] == wanted


@pytest.mark.parametrize(
    ("name", "args", "shape", "message"),
    [
        ("densenet121", {"drop_rate": 1.5}, RGB, r"model\.drop_rate: should be .*1, got 1\.5"),
        ("convnext_tiny", {"stochastic_depth_prob": -1}, RGB, "should be .*0, got -1"),
        ("mobilenet_v2", {"width_mult": 0}, RGB, "should be greater than 0, got 0"),
        ("regnet_y_400mf", {"dropout": 0.1}, RGB, r"unknown key 'model\.dropout'.*takes none"),
        ("maxvit_t", {}, RGB, "maxvit_t cannot be built.*not divisible by partition size"),
        ("alexnet", {}, (3, 32, 32), "alexnet cannot take images of 3x32x32"),
        ("squeezenet1_0", {}, (1, 64, 64), "takes images of 3 channels, got data with 1"),
    ],
)
def test_mistakes(name, args, shape, message):
    with pytest.raises(UserError, match=message) as caught:
        build(name, shape, **args)
    assert "\n" not in str(caught.value)
