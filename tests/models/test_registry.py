"""model.name and its keys; custom models; every mistake in one clear line."""

import pytest
import torch
from torch import nn

from pipeline_local.errors import UserError
from pipeline_local.models import registry
from pipeline_local.models.backbone import Backbone, materialize, shapes

RGB = (3, 32, 32)
VIT = {"patch_size": 8, "num_layers": 2, "num_heads": 2, "hidden_dim": 16, "mlp_dim": 32}

CUSTOM = """
import torch
from torch import nn
from pipeline_local.models import mlp

def blocks(num_classes, image_shape, width=8):
    channels = image_shape[0]
    return [
        ("conv", nn.Sequential(nn.Conv2d(channels, width, 3, padding=1), nn.ReLU())),
        nn.Conv2d(width, width, 3),
        nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, num_classes)),
    ]

def whole(num_classes, image_shape):
    return mlp.build(image_shape, num_classes, hidden=4, depth=2)

def nothing(num_classes, image_shape):
    return 3

class Scale(nn.Module):
    def __init__(self):
        super().__init__()
        self.factor = nn.Parameter(torch.ones(1))
    def forward(self, x):
        return x * self.factor

def unresettable(num_classes, image_shape):
    return [nn.Flatten(), ("body", nn.Sequential(nn.Linear(3072, 4), Scale())), nn.Linear(4, 2)]

def broken(num_classes, image_shape):
    raise ValueError("no luck")

constant = 5
"""


@pytest.fixture
def custom(tmp_path, monkeypatch):
    (tmp_path / "my_models.py").write_text(CUSTOM)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))


def test_custom_blocks(custom):
    backbone = registry.build("python:my_models:blocks", {"width": 5}, 10, RGB)
    assert [block.name for block in backbone.blocks] == ["conv", "block1"]
    assert backbone.layout == "NCHW"
    assert shapes(backbone, (2, *RGB))[-1] == (2, 5, 30, 30)
    x = torch.randn(2, *RGB)
    for block in [*backbone.blocks, backbone.classifier]:
        device = torch.device("cpu")
        x = materialize(block.module, backbone.initialize, 1, device, torch.float32)(x)
    assert x.shape == (2, 10)
    assert torch.isfinite(x).all()


def test_custom_backbone(custom):
    backbone = registry.build("python:my_models:whole", {}, 10, RGB)
    assert isinstance(backbone, Backbone)
    assert len(backbone.blocks) == 2


def test_mlp():
    backbone = registry.build("mlp", {"hidden": 8, "depth": 3, "activation": "gelu"}, 4, (1, 8, 8))
    assert shapes(backbone, (2, 1, 8, 8)) == [(2, 8)] * 3
    assert isinstance(backbone.blocks[0].module[-1], nn.GELU)


@pytest.mark.parametrize(
    ("name", "args", "shape", "message"),
    [
        ("resnet21", {}, RGB, r"got 'resnet21'; did you mean 'resnet\d+'"),
        ("alexnet", {}, RGB, "choose one of mlp, resnet20"),
        ("resnet20", {"widht": 8}, RGB, r"unknown key 'model\.widht'.*did you mean 'model\.width'"),
        ("resnet20", {"depth": 8}, RGB, r"unknown key 'model\.depth'"),
        ("resnet20", {"shortcut": "C"}, RGB, "cannot be built.*shortcut"),
        ("resnet20", {"width": "wide"}, RGB, "cannot be built"),
        ("resnet50", {"num_classes": 3}, RGB, r"unknown key 'model\.num_classes'"),
        ("resnet50", {}, (1, 8, 8), "3 channels, got data with 1"),
        ("vit", {}, RGB, r"missing key 'model\.patch_size'"),
        ("vit", {**VIT, "num_heads": 3}, RGB, "cannot be built"),
        ("vit", VIT, (3, 30, 30), "cannot be built.*indivisible"),
        ("mlp", {"depth": 0}, RGB, "cannot be built"),
        ("python:nowhere", {}, RGB, "write python:package.module:function"),
        ("python:no.such.module:f", {}, RGB, "cannot be imported"),
        ("python:my_models:missing", {}, RGB, "has no 'missing'"),
        ("python:my_models:constant", {}, RGB, "is no function"),
        ("python:my_models:nothing", {}, RGB, "classifier last; got int"),
        ("python:my_models:unresettable", {}, RGB, r"body\.1 \(Scale\).*reset_parameters"),
        ("python:my_models:broken", {}, RGB, "no luck"),
        ("python:my_models:blocks", {"depth": 3}, RGB, "depth"),
    ],
)
def test_mistakes(custom, name, args, shape, message):
    with pytest.raises(UserError, match=message) as caught:
        registry.build(name, args, 10, shape)
    assert "\n" not in str(caught.value)
