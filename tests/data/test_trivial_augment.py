from random import Random

import pytest
import torch
from torchvision.transforms import v2

from pipeline_local.data.trivial_augment import NUM_STRENGTHS, OPERATIONS, trivial_augment
from pipeline_local.seeds import generator


def random_image(channels):
    shape = (channels, 16, 16)
    return torch.randint(0, 200, shape, dtype=torch.uint8, generator=generator(0, "image"))


def all_outcomes(image):
    last = NUM_STRENGTHS - 1
    strengths = [s / last for s in range(-last, NUM_STRENGTHS)]
    return torch.stack([op(image, s) for op in OPERATIONS for s in strengths]).short()


@pytest.mark.parametrize("channels", [1, 3])
def test_torchvision_draws_from_the_same_outcomes(channels):
    image, theirs = random_image(channels), v2.TrivialAugmentWide()
    ours = all_outcomes(image)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        drawn = [theirs(image).short() for _ in range(300)]
    # Its strengths are float32, so some colours differ by one level and a rare shift by one pixel.
    same = [int((ours - one).abs().amax((1, 2, 3)).min()) <= 1 for one in drawn]
    assert sum(same) > 0.95 * len(same)


def test_draws_spread_over_the_operations_and_strengths():
    image = random_image(3)
    ours = {one.numpy().tobytes() for one in all_outcomes(image).byte()}
    drawn = {trivial_augment(image, Random(seed)).numpy().tobytes() for seed in range(400)}
    assert len(drawn) > 150
    assert drawn <= ours
