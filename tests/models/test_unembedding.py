"""Final norm and unembedding as one block, as models and heads hold it."""

import copy

import pytest
import torch
from torch import nn

from pipeline_local.models.unembedding import Unembedding


def unembedding(*names):
    torch.manual_seed(0)
    norm = nn.LayerNorm(4)
    return Unembedding(norm, nn.Linear(4, 7, bias=False), *names)


@pytest.mark.parametrize("names", [(), (("model.decoder.norm", "lm_head"),)])
def test_logits_are_the_matrix_of_hidden_activations(names):
    block, x = unembedding(*names), torch.randn(2, 3, 4)
    assert torch.equal(block.hidden(x), block.norm(x))
    assert torch.equal(block(x), block.unembedding(block.hidden(x)))
    assert block.weight is block.unembedding.weight
    assert block(x).shape == (2, 3, 7)


def test_names_of_tensors_follow_the_paths():
    assert [*unembedding().state_dict()] == ["norm.weight", "norm.bias", "unembedding.weight"]
    other = unembedding(("model.decoder.norm", "lm_head"))
    assert [*other.state_dict()] == [
        "model.decoder.norm.weight", "model.decoder.norm.bias", "lm_head.weight",
    ]  # fmt: skip
    assert len(list(other.parameters())) == 3


def test_a_copy_holds_its_own():
    block = unembedding(("model.norm", "lm_head"))
    copied = copy.deepcopy(block)
    with torch.no_grad():
        copied.get_parameter("lm_head.weight").zero_()
    assert not copied.weight.any()
    assert copied.norm is copied.get_submodule("model.norm")
    assert block.weight.any()


def test_a_bias_is_refused():
    with pytest.raises(ValueError, match="bias"):
        Unembedding(nn.LayerNorm(4), nn.Linear(4, 7))
