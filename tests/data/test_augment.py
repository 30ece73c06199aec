from random import Random

import pytest
import torch
from torchvision.transforms.v2 import functional as F

from pipeline_local.data.augment import augment, fit, random_resized_crop, shifted_crop
from pipeline_local.seeds import generator


def random_image(height, width, channels=3):
    shape = (channels, height, width)
    return torch.randint(1, 256, shape, dtype=torch.uint8, generator=generator(0, "image"))


def test_fit_leaves_an_image_of_the_size_alone():
    image = random_image(80, 80)
    assert fit(image, 80) is image


def test_fit_scales_the_shorter_side_of_small_images_exactly():
    image = random_image(20, 30)
    assert torch.equal(fit(image, 10), F.center_crop(F.resize(image, [10, 15]), [10, 10]))


def test_fit_leaves_a_margin_around_large_images():
    image = random_image(300, 400)
    expected = F.center_crop(F.resize(image, [256, 341]), [224, 224])
    assert torch.equal(fit(image, 224), expected)


@pytest.mark.parametrize("name", ["none", "standard", "trivial"])
@pytest.mark.parametrize("size", [8, 16, 72])
@pytest.mark.parametrize("channels", [1, 3])
def test_augment_is_a_pure_function_of_the_draw(name, size, channels):
    image = random_image(24, 18, channels)
    before, state = image.clone(), torch.get_rng_state()
    results = [augment(image, size, name, Random(seed)) for seed in (7, 8, 7)]
    assert results[0].shape == (channels, size, size)
    assert results[0].dtype == torch.uint8
    assert torch.equal(results[0], results[2])
    assert torch.equal(results[0], results[1]) == (name == "none")
    assert torch.equal(image, before)
    assert torch.equal(torch.get_rng_state(), state)


def test_shifts_reach_every_offset_and_fill_with_zeros():
    image = random_image(16, 16)
    crops = {shifted_crop(image, 16, Random(seed)).numpy().tobytes() for seed in range(400)}
    padded = F.pad(image, [2])
    expected = {
        padded[:, y : y + 16, x : x + 16].numpy().tobytes() for y in range(5) for x in range(5)
    }
    assert crops == expected


def test_half_of_the_images_are_flipped():
    image = torch.zeros(1, 8, 8, dtype=torch.uint8)
    image[:, :, :4] = 255
    right = sum(
        int(augment(image, 8, "standard", Random(seed))[0, 4, 6] > 0) for seed in range(200)
    )
    assert 70 < right < 130


def test_resized_crops_have_the_published_area_and_ratio(monkeypatch):
    seen = []
    monkeypatch.setattr(F, "resized_crop", lambda image, *box: seen.append(box) or image)
    for seed in range(300):
        random_resized_crop(random_image(100, 100), 80, Random(seed))
    areas = [h * w / 1e4 for _, _, h, w, _ in seen]
    ratios = [w / h for _, _, h, w, _ in seen]
    assert 0.07 < min(areas) < 0.12
    assert 0.85 < max(areas) <= 1
    assert 0.7 < min(ratios) < 0.8
    assert 1.25 < max(ratios) < 1.4
    assert all(top + h <= 100 and left + w <= 100 for top, left, h, w, _ in seen)


def test_an_image_too_narrow_for_a_crop_gives_its_centre():
    image = random_image(400, 2)
    assert torch.equal(random_resized_crop(image, 72, Random(0)), fit(image, 72))


@pytest.mark.parametrize("size", [10, 63, 100, 224])
@pytest.mark.parametrize("sides", [(1, 400), (2, 17), (4, 60), (16, 130), (9, 700), (30, 301)])
@pytest.mark.parametrize("wide", [False, True])
def test_the_centre_of_a_narrow_image_is_that_of_the_whole(sides, size, wide):
    side, length = sides
    shape = (side, length) if wide else (length, side)
    shorter = size if size <= 64 else round(size * 256 / 224)
    smooth = (torch.linspace(0, 60, length).sin() * 100 + 128).byte().expand(3, side, length)
    exact = shorter * length % side == 0  # else `resize` rounds the length
    image = random_image(*shape) if exact else smooth if wide else smooth.mT
    whole = F.center_crop(F.resize(image, [shorter]), [size, size])
    assert (fit(image, size).int() - whole.int()).abs().max() <= (1 if exact else 40)
    assert (fit(image, size).int() - whole.int()).float().mean().abs() < 3


@pytest.mark.parametrize("shape", [(400, 1), (1, 400), (1, 100_000), (30_000, 3)])
@pytest.mark.parametrize("size", [64, 224])
@pytest.mark.parametrize("name", ["none", "standard"])
def test_a_narrow_image_takes_little_memory(monkeypatch, shape, size, name):
    seen, resize = [], F.resize

    def watched(image, *args):
        made = resize(image, *args)
        seen.append(made.numel())
        return made

    monkeypatch.setattr(F, "resize", watched)
    assert augment(random_image(*shape), size, name, Random(0)).shape == (3, size, size)
    assert max(seen) < 3 * 8 * (size * 256 // 224 + 1) ** 2
