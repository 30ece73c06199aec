"""What is a torchvision ResNet's own: its cut and its zero residual branches."""

import pytest
import torch

from pipeline_local.models import registry
from pipeline_local.models.backbone import materialize


@pytest.mark.parametrize(("name", "last"), [("resnet18", "bn2"), ("resnet50", "bn3")])
@pytest.mark.parametrize("zero", [True, False])
def test_residual_branches_start_at_zero_on_demand(name, last, zero):
    backbone = registry.build(name, {"zero_init_residual": zero}, 7, (3, 32, 32))[0]
    block = backbone.blocks[1]
    made = materialize(block.module, backbone.initialize, 1, torch.device("cpu"), torch.float32)
    assert made.get_submodule(last).weight.any() != zero
    assert made.bn1.weight.all()


def test_stem_and_residual_blocks_are_blocks():
    names = [block.name for block in registry.build("resnet18", {}, 7, (3, 32, 32))[0].blocks]
    groups = [f"layer{group}.{i}" for group in range(1, 5) for i in range(2)]
    assert names == ["stem", *groups]
