"""What is a ViT's own: halves of layers, and the size of its images."""

import pytest
import torch

from pipeline_local.errors import UserError
from pipeline_local.models import registry
from pipeline_local.models.backbone import shapes

TINY = {"patch_size": 8, "num_layers": 2, "num_heads": 2, "hidden_dim": 16, "mlp_dim": 32}


def names(**args):
    return [block.name for block in registry.build("vit", TINY | args, 7, (3, 32, 32))[0].blocks]


def test_encoder_layers_are_blocks():
    assert names() == ["patches", "encoder_layer_0", "encoder_layer_1"]


def test_halves_of_encoder_layers_are_blocks():
    layers = [f"encoder_layer_{i}.{half}" for i in range(2) for half in ("attention", "mlp")]
    assert names(split_attention=True) == ["patches", *layers]


def test_tokens_are_patches_and_one_class_token():
    backbone = registry.build("vit", TINY, 7, (3, 32, 32))[0]
    assert shapes(backbone, (5, 3, 32, 32)) == [torch.Size((5, 17, 16))] * 3
    assert backbone.layout == "NTC"


def test_saying_the_size_of_the_data_is_allowed():
    assert names(image_size=32) == names()


@pytest.mark.parametrize(
    ("args", "image_shape", "message"),
    [
        ({"image_size": 224}, (3, 32, 32), r"model\.image_size.*data's own size 32, got 224"),
        ({}, (3, 32, 40), "square images, got 32x40"),
        ({}, (3, 33, 33), "indivisible"),
    ],
)
@pytest.mark.parametrize("name", ["vit", "vit_b_32"])
def test_images_that_do_not_fit(name, args, image_shape, message):
    with pytest.raises(UserError, match=message):
        registry.build(name, (TINY if name == "vit" else {}) | args, 7, image_shape)
