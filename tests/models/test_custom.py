"""A user's own function becomes a backbone, and each of its mistakes one clear line."""

import sys

import pytest
import torch
from torch import nn

from pipeline_local.errors import UserError
from pipeline_local.models import registry
from pipeline_local.models.backbone import Backbone, made, materialize, shapes

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

class Unfilled(nn.Module):
    def __init__(self):
        super().__init__()
        self.factor = nn.Parameter(torch.empty(4))
    def forward(self, x):
        return x * self.factor

def in_front(middle, num_classes):
    first = nn.Sequential(nn.Flatten(), nn.Linear(3072, 4))
    return [first, middle, nn.Linear(4, num_classes)]

def constants(num_classes, image_shape):
    return in_front(nn.Sequential(nn.Linear(4, 4), Scale()), num_classes)

def unfilled(num_classes, image_shape):
    return in_front(nn.Sequential(nn.Linear(4, 4), Unfilled()), num_classes)

def lazy(num_classes, image_shape):
    layers = [nn.LazyLinear(4), nn.LazyBatchNorm1d(), nn.ReLU()]
    return in_front(nn.Sequential(*layers), num_classes)

def numbers(num_classes, image_shape):
    rates = [rate.item() for rate in torch.linspace(0, 0.2, 3)]
    assert torch.ones(2).numpy().tolist() == [1, 1] and rates[2] > 0.1
    return in_front(nn.Linear(4, 4), num_classes)

def never(num_classes, image_shape):
    return torch.ones(3).item()

def eye(how):
    def build(num_classes, image_shape):
        layer = nn.Linear(4, 4)
        with torch.no_grad():
            how(layer, torch.eye(4))
        return in_front(layer, num_classes)
    return build

by_init = eye(lambda layer, eye: nn.init.eye_(layer.weight))
by_apply = eye(lambda layer, eye: layer.apply(lambda m: nn.init.eye_(m.weight)))
by_copy = eye(lambda layer, eye: layer.weight.copy_(eye))
by_data = eye(lambda layer, eye: setattr(layer.weight, "data", eye))
by_parameter = eye(lambda layer, eye: setattr(layer, "weight", nn.Parameter(eye)))
by_index = eye(lambda layer, eye: layer.weight.__setitem__(slice(None), eye))
by_fill = eye(lambda layer, eye: layer.weight.zero_().fill_diagonal_(1))
by_state = eye(lambda layer, eye: layer.load_state_dict({"weight": eye, "bias": torch.ones(4)}))
by_assign = eye(
    lambda layer, eye: layer.load_state_dict({"weight": eye, "bias": eye[0]}, assign=True)
)

class Eye(nn.Linear):
    def __init__(self, *size):
        super().__init__(*size)
        nn.init.eye_(self.weight)

def by_class(num_classes, image_shape):
    return in_front(Eye(4, 4), num_classes)

def by_backbone(num_classes, image_shape):
    from pipeline_local.models.backbone import Backbone, Block, reset_parameters
    first, layer, last = in_front(Eye(4, 4), num_classes)
    blocks = (Block("first", first), Block("block1", layer))
    return Backbone(blocks, Block("last", last), reset_parameters, "NC")

class Writing(nn.Linear):
    def forward(self, x):
        x -= 1
        return super().forward(nn.functional.relu_(x))

def writing(num_classes, image_shape):
    return in_front(Writing(4, 4), num_classes)

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
    return registry.build(f"python:my_models:{function}", args, 10, RGB)[0]


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
        ("python:my_models:unfilled", r"block1\.1 \(Unfilled\).*reset_parameters"),
        ("python:my_models:shared", r"a\.weight and b\.0\.weight share"),
        ("python:my_models:twice", "several blocks are named a"),
        ("python:my_models:shrinking", r"\[2, 3, 32, 32\], \[2, 3072\].*flatten in the classifier"),
        ("python:my_models:impossible", "impossible cannot be built with"),
        ("python:my_models:broken", "no luck"),
        ("python:my_models:never", r"cannot be converted to Scalar, my_models.py line \d+"),
    ],
)
def test_mistakes(name, message):
    with pytest.raises(UserError, match=message) as caught:
        registry.build(name, {}, 10, RGB)
    assert "\n" not in str(caught.value)


def test_misspelt_keys():
    with pytest.raises(UserError, match=r"'model\.widht'.*did you mean 'model\.width'"):
        build("blocks", widht=3)


def filled(backbone):
    return [
        made(block, backbone.initialize, 1, torch.device("cpu"), torch.float32)
        for block in (*backbone.blocks, backbone.classifier)
    ]


SET = ["init", "apply", "copy", "data", "parameter", "index", "fill", "state", "assign", "class"]


@pytest.mark.parametrize("how", [*SET, "backbone"])
def test_what_the_function_sets_is_kept(how):
    """torch's meta device drops it without a word."""
    backbone = build(f"by_{how}")
    assert all(t.is_meta for block in backbone.blocks for t in block.module.parameters())
    first, middle, _ = filled(backbone)
    assert torch.equal(middle.weight, torch.eye(4))
    again = filled(build(f"by_{how}"))
    assert torch.equal(first[1].weight, again[0][1].weight), "a function of the seed"


def test_constants_of_layers_that_cannot_reset_themselves():
    assert filled(build("constants"))[1][1].factor.item() == 1
    assert filled(build("forgetful"))[0][1].order.tolist() == [0, 1, 2, 3]


def test_what_torch_fills_itself_is_filled_block_by_block():
    """Then no rank builds the whole model, and its weights depend on (seed, block) alone."""
    for name in ("blocks", "tokens", "series", "lazy"):
        assert all(block.values is None for block in build(name).blocks), name


def test_a_function_may_ask_for_values_while_it_builds():
    assert filled(build("numbers"))[1].weight.shape == (4, 4)


def test_lazy_layers_get_their_shapes():
    layer, norm, _ = filled(build("lazy"))[1]
    assert layer.weight.shape == (4, 4)
    assert norm.running_var.tolist() == [1] * 4


def test_a_block_that_writes_to_its_input_gets_a_copy():
    _, middle, _ = filled(build("writing"))
    x = torch.ones(2, 4, requires_grad=True)
    assert middle(x).requires_grad
    assert x.tolist() == torch.ones(2, 4).tolist()
