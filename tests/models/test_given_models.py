"""A user's own model becomes blocks that are the model, to the bit, weights and names included."""

import random

import numpy as np
import pytest
import torch
import torchvision
from torch import nn
from torch.nn import functional
from torchvision.models.vision_transformer import VisionTransformer

from pipeline_local.errors import UserError
from pipeline_local.models import given, weights
from pipeline_local.models.backbone import fake_copy, made, shapes

CPU = torch.device("cpu")
IMAGES, SERIES, FLAT = torch.randn(4, 3, 32, 32), torch.randn(4, 3, 20), torch.randn(4, 6)


def convolutions():
    first = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(inplace=True))
    second = nn.Sequential(nn.Conv2d(8, 8, 3), nn.ReLU(inplace=True), nn.MaxPool2d(2))
    return nn.Sequential(first, second, nn.Flatten(), nn.Dropout(0.5), nn.Linear(1800, 5))


def perceptron():
    layers = [nn.Flatten(), nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 8), nn.Tanh()]
    return nn.Sequential(*layers, nn.Linear(8, 5), nn.LogSoftmax(1))


def series():
    layers = [nn.Conv1d(3, 8, 3), nn.BatchNorm1d(8), nn.ReLU(), nn.Conv1d(8, 8, 3), nn.ReLU()]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool1d(1), nn.Flatten(), nn.Linear(8, 5))


class Functional(nn.Module):
    """As in many a tutorial: calls between modules, and a flag of the mode."""

    def __init__(self):
        super().__init__()
        self.conv1, self.conv2 = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 3)
        self.fc1, self.fc2 = nn.Linear(288, 20), nn.Linear(20, 5)
        self.register_buffer("mean", torch.full((1, 3, 1, 1), 0.5), persistent=False)

    def forward(self, x):
        x = functional.max_pool2d(functional.relu(self.conv1(x - self.mean)), 2)
        x = functional.max_pool2d(functional.relu(self.conv2(x)), 2).view(x.size(0), -1)
        x = functional.dropout(functional.relu(self.fc1(x)), 0.3, training=self.training)
        return functional.log_softmax(self.fc2(x), dim=1)


def vit():
    return VisionTransformer(32, 16, 3, 2, 16, 32, dropout=0.1, num_classes=5)


MODELS = {
    "convolutions": (convolutions, IMAGES, "NCHW", ["0.0", "1.0", "classifier"]),
    "perceptron": (perceptron, FLAT, "NC", ["1", "3", "classifier"]),
    "series": (series, SERIES, "NCT", ["0", "3", "classifier"]),
    "functional": (Functional, IMAGES, "NCHW", ["conv1", "conv2", "classifier"]),
    "vit": (vit, IMAGES, "NTC", ["conv_proj"] + [f"encoder.layers.encoder_layer_{i}"
            for i in range(3)] + ["classifier"]),
    "resnet18": (torchvision.models.resnet18, IMAGES, "NCHW", ["conv1"]
                 + [f"layer{i}.{k}" for i in range(1, 5) for k in range(2)] + ["classifier"]),
    "mobilenet": (torchvision.models.mobilenet_v2, IMAGES, "NCHW",
                  [f"features.{i}" for i in range(19)] + ["classifier"]),
    "swin": (torchvision.models.swin_t, IMAGES, "NHWC", None),
}  # fmt: skip


def parts(backbone, dtype=torch.float32):
    return [
        (block, made(block, backbone.initialize, 0, CPU, dtype))
        for block in (*backbone.blocks, backbone.classifier)
    ]


@pytest.fixture(scope="module", params=list(MODELS))
def case(request):
    make, x, layout, names = MODELS[request.param]
    torch.manual_seed(0)
    model = make()
    return model, given.backbone(model, x), x, layout, names


def test_blocks_are_named_after_modules_and_their_layout_is_found(case):
    _, backbone, x, layout, names = case
    assert backbone.layout == layout
    found = [block.name for block in (*backbone.blocks, backbone.classifier)]
    assert names is None or found == names
    assert {len(shape) for shape in shapes(backbone, x.shape)} == {len(layout)}


@pytest.mark.parametrize("training", [True, False])
def test_blocks_in_order_are_the_model(case, training):
    model, backbone, x, *_ = case
    blocks = nn.Sequential(*(module for _, module in parts(backbone)))
    before = {name: value.clone() for name, value in model.state_dict().items()}
    outputs = []
    for network in (model, blocks):
        torch.manual_seed(1)
        outputs.append(network.train(training)(x))
    assert torch.equal(*outputs)
    model.load_state_dict(before)
    model.train()


def test_weights_go_back_into_the_model_under_its_names(case):
    model, backbone, *_ = case
    made_parts = parts(backbone)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with torch.no_grad():
        for _, module in made_parts:
            for parameter in module.parameters():
                parameter.add_(1)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    state = weights.model_state(made_parts)
    assert weights.fitted(backbone, state).fresh == []
    model.load_state_dict(state, strict=True)
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(parameter, before[name] + 1)
    model.load_state_dict(before)


def test_blocks_cost_nothing_and_never_modify_their_input(case):
    _, backbone, x, *_ = case
    for block, module in parts(backbone):
        assert all(t.is_meta for t in block.module.state_dict().values())
        copied = fake_copy(block.module, CPU, torch.float64)
        assert list(copied.state_dict()) == list(module.state_dict())
        leaf = x.detach().requires_grad_()
        y = module.train()(leaf)
        assert torch.equal(leaf, x)
        y.sum().backward()
        x = y.detach()


def test_other_precisions_are_the_same_values():
    model = perceptron()
    double = dict(parts(given.backbone(model, FLAT), torch.float64)[0][1].named_parameters())
    assert torch.equal(double["1.weight"], model[1].weight.double())


def test_a_list_says_what_the_blocks_are():
    stem = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3))
    head = nn.Sequential(nn.Flatten(), nn.Linear(5408, 5))
    pairs = [
        ("stem", stem),
        ("norm", nn.BatchNorm2d(8)),
        ("conv", nn.Conv2d(8, 8, 3)),
        ("fc", head),
    ]
    backbone = given.backbone(pairs, IMAGES)
    assert [block.name for block in backbone.blocks] == ["stem", "conv"]
    assert list(weights.model_state(parts(backbone)))[-1] == "fc.1.bias"
    plain = given.backbone([stem, head], torch.randn(2, 3, 30, 30))
    assert [block.name for block in plain.blocks] == ["0"]


class InPlace(nn.Module):
    """Its second block would modify the first one's output, through a view."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.head = nn.Linear(6, 6), nn.Linear(6, 6), nn.Linear(6, 5)
        self.double = Double()

    def forward(self, x):
        return self.head(self.double(self.a(x)))


class Double(nn.Module):
    def __init__(self):
        super().__init__()
        self.scale = nn.Linear(6, 6)

    def forward(self, x):
        return self.scale(x.view(-1, 6).mul_(2)) + x


@pytest.mark.parametrize(
    "model",
    [
        [nn.Linear(6, 6), nn.Sequential(nn.ReLU(inplace=True), nn.Linear(6, 6)), nn.Linear(6, 5)],
        [nn.Linear(6, 6), Double(), nn.Linear(6, 5)],
        [nn.Sequential(nn.ReLU(inplace=True), nn.Linear(6, 6)), nn.Linear(6, 5)],
    ],
)
def test_blocks_that_would_modify_their_input_work_on_a_copy(model):
    x = FLAT
    for _, module in parts(given.backbone(model, FLAT)):
        before = x.clone()
        y = module(x)
        assert torch.equal(x, before)
        x = y
    assert torch.equal(x, nn.Sequential(*model)(FLAT.clone()))


def test_layers_in_evaluation_mode_stay_in_it():
    model = torchvision.models.resnet18(num_classes=5)
    model.bn1.eval()
    model.layer1[0].bn2.eval()
    for layer in (model.conv1, model.layer1[1]):
        layer.requires_grad_(False)
    by_name = {block.name: module.train() for block, module in parts(given.backbone(model, IMAGES))}
    assert not by_name["conv1"].bn1.training
    first, second = by_name["layer1.0"], by_name["layer1.1"]
    assert not first.bn2.training
    assert first.bn1.training
    assert not by_name["conv1"].conv1.weight.requires_grad
    assert not any(parameter.requires_grad for parameter in second.parameters())
    assert all(p.requires_grad for p in by_name["layer2.0"].parameters())


@pytest.mark.parametrize("blocks", [lambda model: model, list])
def test_a_model_in_evaluation_mode_trains(blocks):
    """Pretrained models usually are: that freezes nothing, as a list of blocks neither."""
    backbone = given.backbone(blocks(convolutions().eval()), IMAGES)
    assert all(m.training for _, module in parts(backbone) for m in module.modules())


def residuals():
    return [Norm(), Norm(), nn.Linear(6, 5)]


class Norm(nn.Module):
    """A block that is called as a whole."""

    def __init__(self):
        super().__init__()
        self.norm = nn.BatchNorm1d(6)
        self.linear = nn.Linear(6, 6)

    def forward(self, x):
        return x + self.linear(self.norm(x)).relu()


@pytest.mark.parametrize("frozen", [lambda blocks: blocks[1], lambda blocks: blocks[1].norm])
def test_names_do_not_depend_on_modes(frozen):
    """What was trained with layers in evaluation mode is loaded without them, and the reverse."""
    blocks = residuals()
    frozen(blocks).eval()
    made, other = given.backbone(blocks, FLAT), given.backbone(residuals(), FLAT)
    assert not parts(made)[1][1].norm.training
    assert parts(made)[0][1].norm.training
    for own, theirs in zip(parts(made), parts(other), strict=True):
        assert own[0].prefix == theirs[0].prefix
        assert list(own[1].state_dict()) == list(theirs[1].state_dict())


class Moody(nn.Linear):
    """Draws from every generator, and puts another buffer in the place of its own."""

    def __init__(self):
        super().__init__(6, 6)
        self.register_buffer("mean", torch.zeros(6))

    def forward(self, x):
        y = super().forward(x)
        if self.training:
            self.mean = 0.9 * self.mean + 0.1 * y.detach().mean(0)
            y = y * (random.random() + np.random.rand())
        return nn.functional.dropout(y, 0.5, self.training) - self.mean


def test_blocks_that_draw_and_remember_are_the_model():
    model = nn.Sequential(Moody(), Moody(), nn.Linear(6, 5))
    buffers, drawn = dict(model.named_buffers()), random.getstate()
    assert len(given.backbone(model, FLAT).blocks) == 2
    assert random.getstate() == drawn
    assert all(value is buffers[name] for name, value in model.named_buffers())
    assert not any(value.any() for value in buffers.values())


def test_lazy_layers_are_given_their_shapes():
    model = nn.Sequential(nn.LazyConv2d(4, 3), nn.LazyBatchNorm2d(), nn.Flatten(), nn.LazyLinear(5))
    state = weights.model_state(parts(given.backbone(model, IMAGES)))
    assert state["3.weight"].shape == (5, 3600)
    assert state["1.num_batches_tracked"] == 0
    model.load_state_dict(state, strict=True)


def test_tied_weights_inside_a_block_stay_tied():
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Linear(6, 6), nn.Linear(6, 6)
            self.b.weight = self.a.weight

        def forward(self, x):
            return x + self.b(self.a(x))

    (_, twice), _ = parts(given.backbone([Twice(), nn.Linear(6, 5)], FLAT))
    assert twice.a.weight is twice.b.weight


class Deciding(nn.Module):
    """torch.fx cannot follow it, but its children run in order."""

    def __init__(self, twist=False):
        super().__init__()
        self.a, self.b, self.twist = nn.Linear(6, 6), nn.Linear(6, 5), twist

    def forward(self, x):
        x = self.a(x)
        if self.twist and bool(x.isfinite().all()):
            x = 2 * x
        return self.b(x) if bool(x.isfinite().all()) else x


def test_children_in_order_where_nothing_can_be_traced():
    model = Deciding()
    backbone = given.backbone(model, FLAT)
    assert [block.name for block in backbone.blocks] == ["a"]
    model.load_state_dict(weights.model_state(parts(backbone)), strict=True)


class Plain(nn.Linear):
    def __init__(self):
        super().__init__(6, 6)
        self.offset = torch.ones(6)


class Unused(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.spare, self.b = nn.Linear(6, 6), nn.Linear(6, 6), nn.Linear(6, 5)

    def forward(self, x):
        return self.b(self.a(x))


def shared():
    layer = nn.Linear(6, 6)
    return nn.Sequential(layer, nn.ReLU(), layer, nn.Linear(6, 5))


def tied():
    model = nn.Sequential(nn.Linear(6, 6), nn.Linear(6, 6), nn.Linear(6, 5))
    model[1].weight = model[0].weight
    return model


class Silent(nn.Linear):
    def train(self, mode=True):
        super().train(mode)


def normed():
    """By a hook, which puts a weight beside the parameters."""
    with pytest.warns(FutureWarning, match="deprecated"):
        return nn.utils.weight_norm(nn.Linear(6, 6))


@pytest.mark.parametrize(
    ("model", "args", "message"),
    [
        (3, {}, "got int; pass an nn.Module or a list of blocks"),
        ([], {}, "got list; pass an nn.Module or a list"),
        ([nn.Linear(6, 6), "head"], {}, "got str in a list of blocks"),
        ([("a.b", nn.Linear(6, 6)), nn.Linear(6, 5)], {}, "'a.b' cannot name one block"),
        ([("a", nn.Linear(6, 6)), ("a", nn.Linear(6, 5))], {}, "'a' cannot name one block"),
        (nn.Linear(6, 5), {}, "Linear cannot be cut.*pass an nn.Sequential, or a list of blocks"),
        (nn.Sequential(nn.Flatten(), nn.Linear(6, 5)), {}, "fewer than two pieces"),
        (nn.Sequential(nn.Linear(7, 5), nn.Linear(5, 5)), {}, r"cannot take inputs of \[4, 6\]"),
        (nn.Sequential(Plain(), nn.Linear(6, 5)), {}, r"0 \(Plain\) keeps offset.*register_buffer"),
        (nn.Sequential(normed(), nn.Linear(6, 5)), {}, "use torch.nn.utils.parametrizations"),
        (nn.Sequential(Silent(6, 6), nn.Linear(6, 5)), {}, r"Silent\) has a train\(\) that gives"),
        (Deciding(twist=True), {}, "children in order: the blocks' outputs differ.*by up to"),
        (Unused(), {}, r"spare\.weight, spare\.bias of Unused would not be trained"),
        (shared(), {}, r"0 and a later block share a parameter \(0\.weight, 0\.weight\)"),
        (tied(), {}, r"0 and a later block share a parameter \(0\.weight, 1\.weight\)"),
        (perceptron(), {"layout": "NTC"}, r"give \[4, 8\] and not NTC"),
    ],
)  # fmt: skip
def test_mistakes(model, args, message):
    with pytest.raises(UserError, match=message) as caught:
        given.backbone(model, FLAT, **args)
    assert "\n" not in str(caught.value)


class Unique(nn.Linear):
    """Asks torch for something whose shape depends on values."""

    def forward(self, x):
        return super().forward(x) + len(torch.unique(x))


def test_an_operation_without_a_shape():
    model = nn.Sequential(nn.Linear(6, 6), Unique(6, 6), nn.Linear(6, 2))
    with pytest.raises(UserError, match=r"block '1' uses aten::_unique2, whose shape"):
        given.output_shape(given.backbone(model, FLAT), FLAT)


class Drifting(nn.Linear):
    """A parameter that nobody trains, which each pass moves."""

    def __init__(self):
        super().__init__(6, 6)
        self.mean = nn.Parameter(torch.zeros(6), requires_grad=False)

    def forward(self, x):
        with torch.no_grad():
            self.mean.lerp_(x.mean(0), 0.5)
        return super().forward(x - self.mean)


def test_a_frozen_parameter_that_moves_is_as_before():
    model = nn.Sequential(nn.Linear(6, 6), Drifting(), nn.Linear(6, 2))
    assert len(given.backbone(model, FLAT).blocks) == 2
    assert not model[1].mean.any()


def test_a_layout_may_be_said():
    model = nn.Sequential(nn.Conv1d(3, 8, 3), nn.Conv1d(8, 8, 3), nn.Flatten(), nn.LazyLinear(5))
    assert given.backbone(model, SERIES, layout="NTC").layout == "NTC"
