"""A user's own function becomes a backbone, and each of its mistakes one clear line."""

import sys

import pytest
import torch
from torch import nn

from pipeline_local.errors import UserError
from pipeline_local.models import registry
from pipeline_local.models.backbone import Backbone, materialize, shapes

RGB = (3, 32, 32)
CUSTOM = """
from dataclasses import replace
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
    return mlp.build(num_classes, image_shape, hidden=4, depth=2)

def free(num_classes, image_shape, **keys):
    return mlp.build(num_classes, image_shape, **keys)

def flat(num_classes, image_shape):
    first = nn.Sequential(nn.Flatten(), nn.Linear(3072, 4))
    return [first, nn.ReLU(inplace=True), nn.Linear(4, num_classes)]

def tokens(num_classes, image_shape):
    layer = nn.TransformerEncoderLayer(32, 2, 16, batch_first=True)
    return [nn.Flatten(1, 2), layer, nn.Sequential(nn.Flatten(), nn.Linear(3072, num_classes))]

def series(num_classes, image_shape):
    first = nn.Sequential(nn.Flatten(2), nn.Conv1d(3, 8, 3))
    head = nn.Sequential(nn.AdaptiveAvgPool1d(1), nn.Flatten(), nn.Linear(8, num_classes))
    return [first, nn.Conv1d(8, 8, 3), head]

class Last(nn.Module):
    def forward(self, x):
        return x.permute(0, 2, 3, 1)

def channels_last(num_classes, image_shape):
    head = nn.Sequential(nn.LayerNorm(8), nn.Flatten(), nn.Linear(8192, num_classes))
    return [nn.Sequential(nn.Conv2d(3, 8, 1), Last()), nn.Linear(8, 8), head]

def said(num_classes, image_shape):
    backbone = mlp.build(num_classes, image_shape, hidden=4)
    return replace(backbone, layout="NTC")

def inplace(num_classes, image_shape):
    act = nn.Sequential(nn.Dropout(0.5, inplace=True), nn.Sequential(nn.ReLU(inplace=True)))
    later = nn.Sequential(nn.Conv2d(3, 3, 1), nn.ReLU(inplace=True))
    return [act, later, nn.Sequential(nn.Flatten(), nn.Linear(3072, num_classes))]

def nothing(num_classes, image_shape):
    return 3

def alone(num_classes, image_shape):
    return [nn.Linear(3, 2)]

def mixed(num_classes, image_shape):
    return [nn.Identity(), "classifier"]

class Scale(nn.Module):
    def __init__(self):
        super().__init__()
        self.factor = nn.Parameter(torch.ones(1))
    def forward(self, x):
        return x * self.factor

class Forgetful(nn.Linear):
    def __init__(self):
        super().__init__(3072, 4)
        self.register_buffer("order", torch.arange(4))

def unresettable(num_classes, image_shape):
    body = nn.Sequential(nn.Linear(3072, 4), Scale())
    return [nn.Flatten(), ("body", body), nn.Linear(4, num_classes)]

def forgetful(num_classes, image_shape):
    return [nn.Sequential(nn.Flatten(), Forgetful()), nn.Linear(4, num_classes)]

def shared(num_classes, image_shape):
    conv = nn.Conv2d(3, 3, 1)
    return [("a", conv), ("b", nn.Sequential(conv)), ("c", nn.Flatten())]

def twice(num_classes, image_shape):
    return [("a", nn.Identity()), ("a", nn.Identity()), nn.Flatten()]

def shrinking(num_classes, image_shape):
    return [nn.Conv2d(3, 3, 1), nn.Flatten(), nn.Linear(3072, num_classes)]

def impossible(num_classes, image_shape):
    return [nn.Conv2d(4, 3, 1), nn.Flatten()]

def broken(num_classes, image_shape):
    raise ValueError("no luck")

constant = 5
"""


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    """The folder that a user starts from; nothing of it is left in this process."""
    (tmp_path / "my_models.py").write_text(CUSTOM)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    yield
    sys.modules.pop("my_models", None)


def build(function, **args):
    return registry.build(f"python:my_models:{function}", args, 10, RGB)


def materialized(backbone):
    return [
        materialize(block.module, backbone.initialize, 1, torch.device("cpu"), torch.float32)
        for block in (*backbone.blocks, backbone.classifier)
    ]


def test_modules_and_pairs_become_blocks():
    backbone = build("blocks", width=5)
    assert [block.name for block in backbone.blocks] == ["conv", "block1"]
    assert shapes(backbone, (2, *RGB))[-1] == (2, 5, 30, 30)
    x = nn.Sequential(*materialized(backbone))(torch.randn(2, *RGB))
    assert x.shape == (2, 10)
    assert torch.isfinite(x).all()


def test_a_backbone_is_taken_as_it_is():
    backbone = build("whole")
    assert isinstance(backbone, Backbone)
    assert len(backbone.blocks) == 2


def test_a_function_may_take_any_key():
    assert len(build("free", depth=3).blocks) == 3


@pytest.mark.parametrize(
    ("function", "layout"),
    [
        ("blocks", "NCHW"),
        ("flat", "NC"),
        ("tokens", "NTC"),
        ("series", "NCT"),
        ("channels_last", "NHWC"),
        ("said", "NTC"),
    ],
)
def test_layout_is_read_off_the_outputs(function, layout):
    assert build(function).layout == layout


def test_training_mode_is_left_alone():
    assert all(m.training for block in build("blocks").blocks for m in block.module.modules())


@pytest.mark.parametrize("training", [True, False])
def test_blocks_never_modify_their_input(training):
    block, later, _ = materialized(build("inplace"))
    x = torch.randn(2, *RGB, requires_grad=True)
    before = x.detach().clone()
    block.train(training)(x).sum().backward()
    assert torch.equal(x, before)
    assert later[1].inplace, "behind a convolution it is harmless"


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("python:nowhere", "write python:package.module:name"),
        ("python:a:b:c", "write python:package.module:name"),
        ("python::f", "write python:package.module:name"),
        ("python:no.such.module:f", "cannot be imported"),
        ("python:my_models:block", "no callable 'block'; did you mean 'blocks'"),
        ("python:my_models:constant", "no callable 'constant'"),
        ("python:my_models:nothing", "classifier last; got int"),
        ("python:my_models:alone", r"classifier last; got list of \['Linear'\]"),
        ("python:my_models:mixed", r"classifier last; got list of \['Identity', 'str'\]"),
        ("python:my_models:unresettable", r"body\.1 \(Scale\).*reset_parameters"),
        ("python:my_models:shared", r"a\.weight and b\.0\.weight share"),
        ("python:my_models:twice", "several blocks are named a"),
        ("python:my_models:shrinking", r"\[1, 3, 32, 32\], \[1, 3072\].*flatten in the classifier"),
        ("python:my_models:impossible", "impossible cannot be built with"),
        ("python:my_models:broken", "no luck"),
    ],
)
def test_mistakes(name, message):
    with pytest.raises(UserError, match=message) as caught:
        registry.build(name, {}, 10, RGB)
    assert "\n" not in str(caught.value)


def test_misspelt_keys():
    with pytest.raises(UserError, match=r"'model\.widht'.*did you mean 'model\.width'"):
        build("blocks", widht=3)


def test_tensors_that_reset_parameters_forgets_are_named():
    with pytest.raises(UserError, match=r"leaves 1\.order unfilled"):
        materialized(build("forgetful"))
