"""Blocks on paper become modules whose weights are a function of (seed, block) alone."""

import pytest
import torch
from torch import nn

from pipeline_local import seeds
from pipeline_local.errors import UserError
from pipeline_local.models.backbone import (
    Backbone,
    Block,
    fake_copy,
    made,
    materialize,
    reset_parameters,
    shapes,
)

CPU = torch.device("cpu")


def on_paper(make):
    with torch.device("meta"):
        return make()


def fresh(module, seed=1, dtype=torch.float32, rule=reset_parameters):
    return materialize(module, rule, seed, CPU, dtype)


class Noise(nn.Module):
    """Owns one tensor of each kind."""

    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.empty(3))
        self.register_buffer("count", torch.empty(3, dtype=torch.int64))
        self.register_buffer("mask", torch.empty(3, dtype=torch.bool), persistent=False)


def test_original_stays_on_the_meta_device():
    linear = on_paper(lambda: nn.Linear(2, 3))
    made = fresh(linear)
    assert linear.weight.is_meta
    assert made.weight.device == CPU


def test_weights_depend_on_the_seed_alone():
    linear = on_paper(lambda: nn.Linear(2, 3))
    first = fresh(linear)
    torch.rand(7)
    torch.manual_seed(99)
    assert torch.equal(first.weight, fresh(linear).weight)
    assert not torch.equal(first.weight, fresh(linear, seed=2).weight)


def test_global_generator_is_left_as_it_was():
    torch.manual_seed(5)
    wanted = torch.rand(3)
    torch.manual_seed(5)
    fresh(on_paper(lambda: nn.Linear(2, 3)))
    assert torch.equal(torch.rand(3), wanted)


def test_dtype_rounds_the_same_draws_and_spares_integers():
    block = on_paper(lambda: nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3)))
    single, double = fresh(block), fresh(block, dtype=torch.float64)
    assert torch.equal(single[0].weight.double(), double[0].weight)
    assert double[1].running_var.dtype == torch.float64
    assert double[1].num_batches_tracked.dtype == torch.int64


def test_frozen_parameters_stay_frozen():
    linear = on_paper(lambda: nn.Linear(2, 3)).requires_grad_(False)
    assert not fresh(linear).weight.requires_grad


def test_meta_context_of_the_caller_does_not_matter():
    linear = on_paper(lambda: nn.Linear(2, 3))
    with torch.device("meta"):
        assert fresh(linear).weight.device == CPU


def test_unfilled_tensors_are_named():
    def fill_nothing(module):
        pass

    with pytest.raises(UserError, match="scale, count unfilled"):
        fresh(on_paper(Noise), rule=fill_nothing)


def test_partly_unfilled_tensors_are_named():
    def fill_half(module):
        module.scale[:2].zero_()
        module.count.zero_()

    with pytest.raises(UserError, match="Noise leaves scale unfilled"):
        fresh(on_paper(Noise), rule=fill_half)


def test_outer_layers_are_reset_after_inner_ones():
    """MultiheadAttention zeroes the bias that its inner linear layer has drawn."""
    attention = fresh(on_paper(lambda: nn.MultiheadAttention(4, 2)))
    assert not attention.out_proj.bias.any()
    assert attention.out_proj.weight.any()


def test_shapes_of_every_block_with_one_sample_and_one_pixel():
    blocks = on_paper(
        lambda: (
            Block("a", nn.Sequential(nn.Conv2d(3, 4, 2, 2), nn.BatchNorm2d(4))),
            Block("b", nn.Conv2d(4, 5, 1)),
        )
    )
    backbone = Backbone(blocks, Block("classifier", nn.Flatten()), reset_parameters, "NCHW")
    assert shapes(backbone, (1, 3, 2, 2)) == [(1, 4, 1, 1), (1, 5, 1, 1)]
    assert shapes(backbone, (6, 3, 4, 8)) == [(6, 4, 2, 4), (6, 5, 2, 4)]
    assert blocks[0].module.training


@pytest.mark.parametrize(
    ("names", "problem"),
    [(["a", "a"], "named a"), (["classifier"], "named classifier"), ([], "no")],
)
def test_impossible_backbones_are_refused(names, problem):
    blocks = tuple(Block(name, nn.Identity()) for name in names)
    with pytest.raises(ValueError, match=problem):
        Backbone(blocks, Block("classifier", nn.Identity()), reset_parameters, "NC")


def test_seeds_are_stable():
    """A changed derivation would silently change every run: these numbers are for ever."""
    assert seeds.derive(0, "block", "stem") == 7855313550345816856
    assert seeds.derive(0, "order", 3) != seeds.derive(0, "order", 4) != seeds.derive(1, "order", 4)


def test_a_block_that_carries_values_gets_a_copy_of_them():
    linear = nn.Linear(2, 3)
    values = dict(linear.named_parameters())
    block = Block("a", on_paper(lambda: nn.Linear(2, 3)).requires_grad_(False), values=values)
    module = made(block, reset_parameters, 1, CPU, torch.float64)
    assert torch.equal(module.weight, linear.weight.double())
    assert not module.weight.requires_grad
    module.weight.zero_()
    assert linear.weight.any()
    assert block.module.weight.is_meta


def test_a_block_without_values_is_drawn():
    linear = on_paper(lambda: nn.Linear(2, 3))
    module = made(Block("a", linear), reset_parameters, 1, CPU, torch.float32)
    assert torch.equal(module.weight, fresh(linear).weight)


def test_tied_values_stay_tied():
    tied = Tied()
    block = Block(
        "a", on_paper(Tied), values=dict(tied.named_parameters()) | dict(tied.named_buffers())
    )
    module = made(block, reset_parameters, 1, CPU, torch.float64)
    assert module.first.weight is module.second.weight
    assert torch.equal(module.first.weight, tied.first.weight.double())
    assert module.count.dtype == torch.int64


class Tied(nn.Module):
    def __init__(self):
        super().__init__()
        self.first = nn.Linear(3, 3, bias=False)
        self.second = nn.Linear(3, 3, bias=False)
        self.second.weight = self.first.weight
        self.register_buffer("count", torch.zeros((), dtype=torch.int64))


def test_a_hollow_copy_keeps_kinds_and_ties():
    with torch.device("meta"):
        paper = Tied()
    paper.first.weight.requires_grad_(False)
    copied = fake_copy(paper, CPU, torch.float64)
    assert copied.first.weight is copied.second.weight
    assert copied.first.weight.dtype == torch.float64
    assert not copied.first.weight.requires_grad
    assert copied.count.dtype == torch.int64
    assert not copied.count.is_meta
    assert paper.first.weight.is_meta


class Own(nn.Module):
    """Draws its scale afresh by putting another one in its place."""

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(2, 2)
        self.scale = nn.Parameter(torch.randn(2))
        self.register_buffer("noise", torch.randn(2))
        self.register_buffer("mask", torch.tensor([True, False]))

    def reset_parameters(self):
        self.noise.detach().sum()  # it is read, and stays as it is
        self.scale = nn.Parameter(torch.ones(2))


def test_copies_are_drawn_afresh_as_far_as_the_rule_goes():
    """What it leaves alone is the block's own; a block without values has nothing to give."""
    block, classifier = Own(), on_paper(lambda: nn.Linear(2, 2))
    values = {k: v.detach() for k, v in block.state_dict().items()}
    blocks = (Block("first", on_paper(Own)), Block("block", on_paper(Own), values=values))
    backbone = Backbone(blocks, Block("classifier", classifier), reset_parameters, "NC")
    rule, last = backbone.rules(1)
    copied = fresh(blocks[1].module, rule=rule)
    assert torch.equal(copied.noise, block.noise)
    assert torch.equal(copied.mask, block.mask)
    assert copied.scale.tolist() == [1, 1]
    assert torch.equal(copied.linear.weight, fresh(block.linear.to("meta")).weight)
    assert torch.equal(fresh(classifier, rule=last).weight, fresh(classifier).weight)
    with pytest.raises(UserError, match="leaves noise unfilled"):
        fresh(blocks[0].module, rule=backbone.rules(0)[0])


def test_a_copy_goes_on_from_the_vectors_of_spectral_norm():
    """Drawing its convolution afresh runs a step of the power iteration on them."""
    block = nn.utils.parametrizations.spectral_norm(nn.Conv2d(2, 3, 3))
    values = {name: tensor.detach() for name, tensor in block.state_dict().items()}
    meta = on_paper(lambda: nn.utils.parametrizations.spectral_norm(nn.Conv2d(2, 3, 3)))
    backbone = Backbone(
        (Block("block", meta, values=values),),
        Block("last", nn.Linear(3, 2)),
        reset_parameters,
        "NC",
    )
    copied = fresh(meta, rule=backbone.rules(0)[0])
    found = copied.parametrizations.weight
    assert torch.equal(found.original, values["parametrizations.weight.original"])
    for vector in (found[0]._u, found[0]._v):
        torch.testing.assert_close(vector.norm(), torch.ones(()))
