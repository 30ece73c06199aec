"""The axis of the channels is read off the layers that take the activations."""

import pytest
import torch
from torch import nn
from torch.nn import functional

from pipeline_local.models import layouts


class ChannelsLast(nn.Module):
    def forward(self, x):
        return x.movedim(1, -1)


class Opaque(nn.Module):
    """Shows no layer."""

    def __init__(self, *layers):
        super().__init__()
        self.hidden = [nn.Sequential(*layers)]

    def forward(self, x):
        return self.hidden[0](x)


class Function(nn.Module):
    """Uses no layer, as blocks of a user's own often do."""

    def __init__(self, function):
        super().__init__()
        self.function = function
        self.weight = nn.Parameter(torch.randn(3, 3))

    def forward(self, x):
        return self.function(x, self.weight) if self.function is not torch.tanh else torch.tanh(x)


def moves_last(x, weight):
    return (x.transpose(1, 2) @ weight).transpose(1, 2)


def shortens(x, weight):
    return functional.conv1d(x, weight[:, :, None], stride=2)


def convolves(x, weight):
    return functional.conv1d(x, torch.randn(4, x.shape[1], 1))


def multiplies(x, weight):
    return x + torch.relu(x @ weight)


def patches(x, weight):
    return functional.conv2d(x, weight[:, :, None, None], stride=2).flatten(2).transpose(1, 2)


def head(width):
    return nn.Sequential(nn.Flatten(), nn.LazyLinear(width))


IMAGES, SERIES = torch.randn(2, 3, 8, 8), torch.randn(2, 3, 8)
CONV, CONV1D = nn.Conv2d(3, 3, 1), nn.Conv1d(3, 3, 1)
LAST = nn.Sequential(CONV, ChannelsLast())
LAST_1D = nn.Sequential(CONV1D, ChannelsLast())


@pytest.mark.parametrize(
    ("blocks", "x", "layout"),
    [
        ([CONV, CONV, head(2)], IMAGES, "NCHW"),
        ([CONV, nn.Sequential(nn.BatchNorm2d(3), nn.Flatten())], IMAGES, "NCHW"),
        ([LAST, nn.Linear(3, 3), head(2)], IMAGES, "NHWC"),
        ([LAST, nn.LayerNorm(3), head(2)], IMAGES, "NHWC"),
        ([CONV1D, CONV1D, head(2)], SERIES, "NCT"),
        ([LAST_1D, nn.Linear(3, 3), head(2)], SERIES, "NTC"),
        ([LAST_1D, nn.MultiheadAttention(3, 1, batch_first=True)], SERIES, "NTC"),
        ([nn.Flatten(), nn.Linear(24, 2)], SERIES, "NC"),
        ([CONV1D, head(2)], SERIES, "NCT"),
        ([Opaque(CONV1D), head(2)], SERIES, "NCT"),
        ([nn.Sequential(CONV, nn.Flatten(2)), Function(moves_last), head(2)], IMAGES, "NCT"),
        ([nn.Sequential(CONV, nn.Flatten(2)), Function(shortens), head(2)], IMAGES, "NCT"),
        ([nn.Flatten(1, 2), Function(convolves), head(2)], IMAGES, "NCT"),
        ([LAST_1D, Function(multiplies), head(2)], SERIES, "NTC"),
        ([LAST, Function(multiplies), head(2)], IMAGES, "NHWC"),
        ([Function(patches), nn.Linear(3, 5), head(2)], IMAGES, "NTC"),
        ([Function(torch.tanh), head(2)], SERIES, "NTC"),
        ([Opaque(CONV), head(2)], IMAGES, "NCHW"),
    ],
)
def test_the_layer_that_takes_an_activation_decides(blocks, x, layout):
    blocks = [block.eval() for block in blocks]
    if isinstance(blocks[-1], nn.MultiheadAttention):
        attention = blocks[-1]
        blocks[-1] = SelfAttention(attention).eval()
    assert layouts.find(blocks, x) == layout
    assert not any(m._forward_pre_hooks for block in blocks for m in block.modules())


class SelfAttention(nn.Module):
    def __init__(self, attention):
        super().__init__()
        self.attention = attention

    def forward(self, x):
        return self.attention(x, x, x)[0]


def test_a_layout_may_be_said():
    assert layouts.find([CONV, CONV, head(2)], IMAGES, "NHWC") == "NHWC"


@pytest.mark.parametrize(
    ("blocks", "said", "message"),
    [
        ([CONV, nn.Flatten(), head(2)], None, r"give \[2, 3, 8, 8\], \[2, 192\]$"),
        ([CONV, CONV, head(2)], "NTC", r"give \[2, 3, 8, 8\] and not NTC"),
        ([nn.Unflatten(1, (1, 3, 1)), nn.Flatten()], None, r"give \[2, 1, 3, 1, 8, 8\]"),
        ([CONV, CONV, ChannelsLast(), nn.Linear(3, 3), head(2)], None, "ends with, linear"),
        (
            [nn.Sequential(CONV, nn.Flatten(2)), nn.Linear(64, 64), head(2)],
            *(None, "some blocks take channels first, others last"),
        ),
        (
            [nn.Flatten(2), nn.Identity(), Function(lambda x, _: x[:, :, ::2]), head(2)],
            *(None, r"give \[2, 3, 64\], \[2, 3, 32\], which axis holds channels does not show"),
        ),
    ],
)
def test_mixtures_are_refused(blocks, said, message):
    with pytest.raises(layouts.LayoutError, match=message):
        layouts.find([block.eval() for block in blocks], IMAGES, said)
