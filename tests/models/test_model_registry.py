"""model.name and its keys; every mistake in one clear line."""

import pytest

from pipeline_local.errors import UserError
from pipeline_local.models import registry

RGB = (3, 32, 32)
VIT = {"patch_size": 8, "num_layers": 2, "num_heads": 2, "hidden_dim": 16, "mlp_dim": 32}


def test_names_are_those_of_the_families():
    names = registry.MODELS.names()
    assert {"mlp", "vit", "resnet32", "resnet50", "vit_b_16", "swin_t", "vgg11_bn"} <= set(names)
    assert not {"mnasnet1_0", "resnet21"} & set(names)


def test_keys_reach_the_builder():
    backbone = registry.build("resnet20", {"width": 4, "shortcut": "B"}, 5, (1, 8, 8))[0]
    assert backbone.blocks[0].module.conv1.weight.shape == (4, 1, 3, 3)
    assert backbone.blocks[4].module.downsample is not None
    assert backbone.classifier.module.fc.weight.shape == (5, 16)


def test_values_are_converted_as_the_configuration_does():
    assert len(registry.build("mlp", {"depth": 3.0}, 5, RGB)[0].blocks) == 3
    with pytest.raises(UserError, match=r"model\.depth: should be a whole number, got '3'"):
        registry.build("mlp", {"depth": "3"}, 5, RGB)


@pytest.mark.parametrize(
    ("name", "args", "shape", "message"),
    [
        ("resnet21", {}, RGB, r"got 'resnet21'; did you mean 'resnet\d+'\? choose one of"),
        ("mnasnet1_0", {}, RGB, "got 'mnasnet1_0'; did you mean"),
        ("resnet20", {"widht": 8}, RGB, r"unknown key 'model\.widht'.*did you mean 'model\.width'"),
        ("resnet20", {"n": 8}, RGB, r"unknown key 'model\.n'.*takes width, shortcut"),
        ("resnet20", {"shortcut": "C"}, RGB, r"model\.shortcut: should be 'A' or 'B', got 'C'"),
        ("resnet20", {"width": "wide"}, RGB, r"model\.width: .*whole number.*got 'wide'"),
        ("resnet50", {"num_classes": 3}, RGB, r"unknown key 'model\.num_classes'"),
        ("resnet50", {"zero_init_residual": "so"}, RGB, "should be true or false.*got 'so'"),
        ("resnet18", {"groups": 2}, RGB, "cannot be built with.*BasicBlock only supports"),
        ("vit", {k: v for k, v in VIT.items() if k != "patch_size"}, RGB, "missing key.*patch_si"),
        ("vit", VIT | {"num_heads": 3}, RGB, "cannot be built.*divisible"),
        ("vit_b_16", {"dropout": 2}, RGB, r"model\.dropout: should be.*1, got 2"),
        ("mlp", {"depth": 0}, RGB, r"model\.depth: should be.*1, got 0"),
        ("vgg11", {}, (3, 8, 8), "vgg11 cannot take images of 3x8x8.*too small"),
    ],
)
def test_mistakes(name, args, shape, message):
    with pytest.raises(UserError, match=message) as caught:
        registry.build(name, args, 10, shape)
    assert "\n" not in str(caught.value)


def test_all_mistakes_at_once():
    with pytest.raises(UserError) as caught:
        registry.build("vit", {"patch_sice": 4}, 10, RGB)
    assert len(str(caught.value).splitlines()) == 1 + len(VIT)
