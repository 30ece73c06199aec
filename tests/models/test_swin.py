"""What is a Swin's own: its cut, its layout, its stochastic depth."""

import pytest
import torch

from pipeline_local.models import registry
from pipeline_local.models.backbone import shapes


def build(**args):
    return registry.build("swin_t", args, 7, (3, 64, 64))[0]


def stochastic_depths(backbone):
    return [b.module.stochastic_depth.p for b in backbone.blocks if hasattr(b.module, "mlp")]


def test_patches_transformer_blocks_and_mergings_are_blocks():
    backbone = build()
    names = [block.name for block in backbone.blocks]
    assert names[:5] == [
        "features.0", "features.1.0", "features.1.1", "features.2", "features.3.0"
    ]  # fmt: skip
    assert backbone.layout == "NHWC"
    assert shapes(backbone, (2, 3, 64, 64))[2:4] == [
        torch.Size((2, 16, 16, 96)), torch.Size((2, 8, 8, 192))
    ]  # fmt: skip


def test_stochastic_depth_is_the_names_own_unless_said():
    assert stochastic_depths(build())[-1] == 0.2


@pytest.mark.parametrize("last", [0.0, 0.55])
def test_stochastic_depth_grows_linearly_to_what_is_said(last):
    wanted = [last * i / 11 for i in range(12)]
    assert stochastic_depths(build(stochastic_depth_prob=last)) == pytest.approx(wanted)
