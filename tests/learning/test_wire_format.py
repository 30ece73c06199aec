"""What crosses a boundary is rounded to the nearest number of the wire, ties to even."""

import numpy as np
import pytest
import torch

from pipeline_local.configfile import configfile
from pipeline_local.learning.wire_format import WireFormat

BFLOAT16 = WireFormat(narrow=torch.bfloat16)
FLOAT16 = WireFormat(narrow=torch.float16)


def numbers(low=-30, high=9):
    """Of all sizes, ties of either parity, and what is special."""
    draw = torch.Generator().manual_seed(0)
    x = torch.randn(999, generator=draw) * 10.0 ** torch.randint(low, high, (999,), generator=draw)
    ties = torch.tensor([1 + 2**-8, 1 + 3 * 2**-8, 1 + 2**-11, 1 + 3 * 2**-11])
    return torch.cat([x, ties, -ties, torch.tensor([0.0, -0.0])])


def nearest_bfloat16(x):
    """The upper 16 bits of a float32, rounded by the lower ones, ties to even."""
    bits = x.numpy().view(np.uint32)
    rounded = (bits + 0x7FFF + ((bits >> 16) & 1)) & 0xFFFF0000
    return torch.from_numpy(rounded.view(np.float32))


def same_bits(a, b):
    return a.dtype == b.dtype and torch.equal(a.view(torch.int32), b.view(torch.int32))


def test_bfloat16_keeps_the_upper_half():
    x = numbers()
    for narrow in (BFLOAT16.round_activations(x), BFLOAT16.round_gradient(x)):
        assert narrow.dtype == torch.bfloat16
        assert same_bits(BFLOAT16.widen(narrow), nearest_bfloat16(x))


def test_float16_is_for_activations():
    x = numbers(high=3)
    narrow = FLOAT16.round_activations(x)
    assert narrow.dtype == torch.float16
    assert same_bits(FLOAT16.widen(narrow), torch.from_numpy(x.numpy().astype(np.float16)).float())
    assert same_bits(FLOAT16.widen(FLOAT16.round_gradient(x)), nearest_bfloat16(x))


def test_signals_do_not_vanish():
    """Float16 has nothing between 0 and 6e-8, which a mean over a batch soon reaches."""
    tiny = torch.tensor([3e-8 / 128])
    assert FLOAT16.round_activations(tiny) == 0
    assert FLOAT16.round_gradient(tiny) > 0


def test_what_overflows_is_no_number():
    """Infinity would do: a bounded activation function takes it for an input like any other."""
    fine = torch.tensor([65504.0, -65504.0, 65519.0])
    assert FLOAT16.round_activations(fine).isfinite().all()
    spoilt = torch.tensor([65520.0, -1e6, float("inf"), float("nan")])
    assert FLOAT16.round_activations(spoilt).isnan().all()
    assert BFLOAT16.round_activations(spoilt[:2]).isfinite().all()


@pytest.mark.parametrize("inside", [torch.float32, torch.float64, torch.bfloat16])
def test_without_a_wire_nothing_is_copied(inside):
    wire_format = WireFormat(inside)
    x = torch.ones(3, dtype=inside)
    for same in (wire_format.round_activations, wire_format.round_gradient, wire_format.widen):
        assert same(x) is x


def test_channels_last_cross_without_a_copy():
    """As the last axis of a contiguous tensor, which every wire takes."""
    wire_format = WireFormat(channels_last=True)
    maps = wire_format.laid_out(torch.randn(2, 3, 4, 5))
    for away in (wire_format.round_activations(maps), wire_format.round_gradient(maps)):
        assert away.is_contiguous()
        assert away.shape == wire_format.shape(maps.shape) == (2, 4, 5, 3)
        assert away.data_ptr() == maps.data_ptr()
        back = wire_format.widen(away)
        assert torch.equal(back, maps)
        assert back.stride() == maps.stride()


@pytest.mark.parametrize("channels_last", [False, True])
def test_what_comes_has_the_same_strides_whatever_left(channels_last):
    wire_format = WireFormat(channels_last=channels_last)
    maps = torch.randn(2, 3, 4, 5)
    strides = {
        wire_format.widen(wire_format.round_gradient(one)).stride()
        for one in (maps, maps.to(memory_format=torch.channels_last), maps.transpose(2, 3).mT)
    }
    assert strides == {wire_format.laid_out(maps).stride()}


def test_tokens_have_no_channels_to_turn():
    wire_format, tokens = WireFormat(channels_last=True), torch.randn(2, 3, 4)
    assert wire_format.widen(wire_format.round_activations(tokens)) is tokens
    assert wire_format.shape(tokens.shape) == tokens.shape


def test_of_a_configuration():
    def of(precision, narrow):
        tree = {"model": {"name": "mlp"}, "data": {"name": "digits"}, "train": {"steps": 1}}
        tree |= {"precision": precision, "parallel": {"wire_dtype": narrow}}
        return WireFormat.of(configfile.parse(tree))

    assert of("float32", None) == WireFormat()
    assert of("float32", "float16") == FLOAT16
    assert of("float64", "bfloat16") == WireFormat(torch.float64, torch.bfloat16)
    low = of("bfloat16", "bfloat16")
    assert (low.inside, low.activations, low.gradients) == (torch.bfloat16,) * 3


def test_float16_is_for_networks_alone():
    """Boundaries have the range that gradients need."""
    tree = {"model": {"name": "mlp"}, "data": {"name": "digits"}, "train": {"steps": 1}}
    tree |= {"engine": "deepspeed", "deepspeed": {"fp16": {"enabled": True}}}
    half = WireFormat.of(configfile.parse(tree | {"precision": "float16"}))
    assert half == WireFormat(half=True)
    assert half.networks == torch.float16
    assert (half.inside, half.activations, half.gradients) == (torch.float32,) * 3
    assert WireFormat(torch.bfloat16).networks == torch.bfloat16
