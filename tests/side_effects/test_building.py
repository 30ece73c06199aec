"""What is found out about a model's parts leaves them as they were."""

import pytest
import torch
from torch import nn

from pipeline_local.side_effects.building import give_shapes, plain_tensors


class Refusing(nn.Module):
    """Takes no input at all."""

    def forward(self, x):
        raise ValueError("no input fits")


def test_lazy_layers_get_their_shapes_and_keep_their_modes():
    parts = [nn.LazyLinear(3), nn.Dropout().eval()]
    give_shapes(parts, torch.zeros(2, 5))
    assert parts[0].weight.shape == (3, 5)
    assert [part.training for part in parts] == [True, False]


def test_a_part_that_raises_leaves_the_modes_as_they_were():
    parts = [nn.LazyLinear(3), Refusing()]
    with pytest.raises(ValueError, match="no input fits"):
        give_shapes(parts, torch.zeros(2, 5))
    assert all(part.training for part in parts)


def test_tensors_that_are_no_buffers_are_named():
    layer = nn.BatchNorm1d(3)
    layer.scale, layer.width = torch.ones(3), 3
    assert plain_tensors(layer) == ["scale"]
