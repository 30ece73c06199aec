"""Augmentation: pure, and as described."""

import pytest
import torch

from pipeline_local.config import DataConfig
from pipeline_local.data.augment import Augment


def make(name, size=16, seed=0):
    return Augment(DataConfig(name="synthetic", augment=name), size, seed)


def picture(size=16):
    return torch.arange(3 * size * size).reshape(3, size, size).remainder(251).to(torch.uint8) + 1


@pytest.mark.parametrize(("name", "size"), [("standard", 16), ("trivial", 16), ("standard", 80)])
def test_a_pure_function_of_seed_epoch_and_sample(name, size):
    image = picture(96 if size > 64 else size)
    first = make(name, size)(image, 3, 5)
    torch.rand(7)
    assert torch.equal(make(name, size)(image, 3, 5), first)
    assert first.shape == (3, size, size)
    assert first.dtype == torch.uint8
    others = [make(name, size)(image, e, i) for e in range(4) for i in range(4)]
    assert len({tuple(o.flatten().tolist()) for o in others}) > 5
    assert not all(
        torch.equal(make(name, size, seed=9)(image, 0, i), make(name, size)(image, 0, i))
        for i in range(8)
    )


def test_none_is_the_identity():
    image = picture()
    assert make("none")(image, 1, 2) is image


def test_standard_crops_everywhere_and_flips_half():
    """Every shift of the padded image occurs, flipped and not, and nothing else."""
    image = picture()
    padded = torch.nn.functional.pad(image, (2, 2, 2, 2))
    crops = {}
    for top in range(5):
        for left in range(5):
            crop = padded[:, top : top + 16, left : left + 16]
            crops[tuple(crop.flatten().tolist())] = (top, left, 0)
            crops[tuple(crop.flip(-1).flatten().tolist())] = (top, left, 1)
    augment = make("standard")
    seen = [crops[tuple(augment(image, 0, i).flatten().tolist())] for i in range(600)]
    assert len(set(seen)) == 50
    assert 0.4 < sum(flip for _, _, flip in seen) / len(seen) < 0.6
