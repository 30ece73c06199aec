"""Materialising blocks: weights are a function of (seed, block), and of nothing else."""

import pytest
import torch
from torch import nn

from pipeline_local import seeds
from pipeline_local.models.backbone import materialize, reset_parameters

CPU = torch.device("cpu")


def make(seed=1, dtype=torch.float32):
    with torch.device("meta"):
        module = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4))
    return module, materialize(module, reset_parameters, seed, CPU, dtype)


def test_same_seed_same_weights_whatever_was_drawn_before():
    _, first = make()
    torch.rand(1000)
    _, second = make()
    assert torch.equal(first[0].weight, second[0].weight)
    assert not torch.equal(first[0].weight, make(seed=2)[1][0].weight)


def test_the_global_generator_and_the_original_are_left_alone():
    torch.manual_seed(0)
    expected = torch.rand(3)
    torch.manual_seed(0)
    original, _ = make()
    assert torch.equal(torch.rand(3), expected)
    assert all(p.is_meta for p in original.parameters())


def test_float64_weights_are_the_float32_ones():
    assert torch.equal(make(dtype=torch.float64)[1][0].weight, make()[1][0].weight.double())


def test_outer_layers_are_reset_after_inner_ones():
    """MultiheadAttention zeroes the bias that its inner linear layer has drawn."""
    with torch.device("meta"):
        attention = nn.MultiheadAttention(4, 2)
    module = materialize(attention, reset_parameters, 0, CPU, torch.float32)
    assert module.out_proj.bias.abs().sum() == 0
    assert torch.isfinite(module.in_proj_weight).all()


def test_layers_without_initialisation_are_named():
    class Scale(nn.Module):
        def __init__(self):
            super().__init__()
            self.factor = nn.Parameter(torch.ones(1))

    module = nn.Sequential(nn.Linear(2, 2), Scale())
    assert reset_parameters(module) == ["1"]


def test_seeds_are_stable():
    """A changed derivation would silently change every run: these numbers are for ever."""
    assert seeds.derive(0, "block", "stem") == 7855313550345816856
    assert seeds.derive(0, "order", 3) != seeds.derive(0, "order", 4) != seeds.derive(1, "order", 4)


def test_an_initialisation_that_forgets_a_tensor_is_refused():
    with torch.device("meta"):
        module = nn.Linear(2, 2)
    with pytest.raises(ValueError, match="does not fill weight"):
        materialize(module, lambda m: nn.init.zeros_(m.bias), 0, CPU, torch.float32)
