"""The agreement of neighbours, as it is told."""

import pytest
import torch

from pipeline_local.learning import reconcile
from pipeline_local.learning.comparison import SLICES, compare
from pipeline_local.memory.live_bytes import LiveBytes


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


@pytest.mark.parametrize("scale", [1.0, 1e-12])
def test_agreement_of_equal_and_opposite_gradients(scale):
    g = torch.randn(5, 7) * scale
    same, opposite = compare(g, g), compare(g, -g)
    assert same.cosine.item() == pytest.approx(1, abs=1e-5)
    assert opposite.cosine.item() == pytest.approx(-1, abs=1e-5)
    assert same.discord == 0
    norm = (5 * g).norm(dim=1).mean().item()
    assert same.input_norm.item() == pytest.approx(norm, rel=1e-5)
    assert opposite.signal_norm.item() == pytest.approx(norm, rel=1e-5)


@pytest.mark.parametrize("size", [1e-35, 1e-20, 1.0, 1e15])
def test_directions_do_not_depend_on_the_size(size):
    """Squares of the gradients of confident samples vanish in float32."""
    g, s = torch.randn(8, 3, 4), torch.randn(8, 3, 4)
    expected = torch.cosine_similarity(g.flatten(1), s.flatten(1)).mean()
    torch.testing.assert_close(compare(g * size, s * size).cosine, expected)
    assert compare(g * 0, s).cosine == 0


@pytest.mark.parametrize("size", [1, SLICES - 1, SLICES, 3 * SLICES + 5])
def test_slices_make_no_difference(size):
    g, s = torch.randn(size, 3, 4), torch.randn(size, 3, 4)
    found = compare(g, s)
    torch.testing.assert_close(found.discord, reconcile.discord(g, s))
    cosines = torch.cosine_similarity(g.flatten(1), s.flatten(1))
    torch.testing.assert_close(found.cosine, cosines.mean())
    torch.testing.assert_close(found.signal_norm, size * s.flatten(1).norm(dim=1).mean())


def test_little_memory_is_taken():
    """Not two gradients more: what is told must not decide what a step takes."""
    g, s = (torch.randn(64, 4096).bfloat16() for _ in range(2))
    live_bytes = LiveBytes()
    live_bytes.hold([g, s])
    with live_bytes:
        compare(g, s)
    gradient = g.numel() * g.element_size()
    assert live_bytes.peak < (2 + 1.5) * gradient
