"""What is each family's own: its cut, its probabilities, its norms."""

import pytest
import torch
import torchvision
from torch import nn
from torchvision.ops import StochasticDepth

from pipeline_local.errors import UserError
from pipeline_local.models import registry, weights

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


def published(name, prefix=""):
    """Names, shapes and kinds of a file that torchvision offers; values take no memory."""
    with torch.device("meta"):
        state = torchvision.models.get_model(name, num_classes=7).state_dict()
    if name == "densenet121":
        for number in "12":
            for kind in ("norm", "conv"):
                pairs = [
                    (key.replace(f".{kind}{number}.", f".{kind}.{number}."), key) for key in state
                ]
                state = {new if "denselayer" in new else key: state[key] for new, key in pairs}
    return {
        prefix + key: torch.zeros((), dtype=v.dtype).expand(v.shape) for key, v in state.items()
    }


@pytest.mark.filterwarnings("ignore:The default weight initialization")
@pytest.mark.parametrize("prefix", ["", "module."])
@pytest.mark.parametrize(
    ("name", "note"),
    [
        ("densenet121", "696 names like norm.1 and conv.2 become norm1 and conv2"),
        ("googlenet", "20 tensors of auxiliary classifiers are left out"),
        ("inception_v3", "14 tensors of auxiliary classifiers are left out"),
    ],
)
def test_published_weights_are_read(name, note, prefix):
    backbone, state = build(name, (3, 96, 96)), published(name, prefix)
    if name == "densenet121":
        assert prefix + "features.denseblock1.denselayer1.norm.1.weight" in state
    found = weights.fitted(backbone, state)
    assert found.notes[-1] == f"model.weights: {note}"
    assert not found.fresh
    again = weights.fitted(backbone, found.state)
    assert again.notes == []
    assert again.state.keys() == found.state.keys()


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
