import pytest
import torch

from pipeline_local.data.images.mixup import mixup
from pipeline_local.seeds import generator

IMAGES = torch.randint(0, 256, (6, 1, 2, 2), dtype=torch.uint8, generator=generator(0, "images"))
LABELS = torch.tensor([0, 1, 2, 3, 4, 5])


def test_images_and_targets_share_weight_and_partner():
    images, targets = mixup(IMAGES, LABELS, 7, alpha=1.0, seed=3, step=4)
    assert (images.dtype, targets.dtype, targets.shape) == (torch.float32, torch.float32, (6, 7))
    # Every class stands for one image here, so the targets tell how the images were blended.
    blended = torch.einsum("bc,c...->b...", targets[:, :6], IMAGES.float())
    torch.testing.assert_close(images, blended)
    torch.testing.assert_close(targets.sum(1), torch.ones(6))
    assert images.max() <= 255


def test_a_pure_function_of_seed_and_step():
    def targets(seed, step):
        return mixup(IMAGES, LABELS, 6, 0.4, seed, step)[1]

    state = torch.get_rng_state()
    assert torch.equal(targets(0, 1), targets(0, 1))
    assert not torch.equal(targets(0, 1), targets(0, 2))
    assert not torch.equal(targets(0, 1), targets(1, 1))
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize(
    ("alpha", "low", "high"), [(0.01, 0.0, 0.05), (1.0, 0.2, 0.3), (1e4, 0.49, 0.5)]
)
def test_alpha_sets_how_even_the_blend_is(alpha, low, high):
    label = torch.zeros(1, dtype=torch.long)
    assert mixup(IMAGES[:1], label, 1, alpha, 0, 0)[1].item() == pytest.approx(1)
    pair = [mixup(IMAGES[:2], LABELS[:2], 2, alpha, 0, step)[1] for step in range(200)]
    lesser = [min(t[0]).item() for t in pair if t[0, 0] < 1 or alpha < 0.1]
    assert low <= sum(lesser) / len(lesser) <= high
