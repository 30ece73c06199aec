"""Datasets and the facts about them; every mistake in one clear line."""

import os
from pathlib import Path

import pytest
import torch
from PIL import Image

from pipeline_local.config import DataConfig
from pipeline_local.data.datasets import DataInfo, describe, open_split
from pipeline_local.errors import UserError

CIFAR10 = os.environ.get("PIPELINE_LOCAL_CIFAR10")


def image(seed, height=32, width=32):
    g = torch.Generator().manual_seed(seed)
    return torch.randint(256, (3, height, width), dtype=torch.uint8, generator=g)


def write(pixels, path):
    Image.fromarray(pixels.permute(1, 2, 0).numpy()).save(path)


@pytest.fixture
def folder(tmp_path):
    """Two classes, five training and two test images each; PNG, so that pixels survive."""
    for split, count in (("train", 5), ("test", 2)):
        for label, name in enumerate(("cat", "dog")):
            (tmp_path / split / name).mkdir(parents=True)
            for i in range(count):
                write(image(10 * label + i), tmp_path / split / name / f"{i}.PNG")
    return tmp_path


def config(root=None, **keys):
    keys = {"name": "imagefolder", "batch_size": 2, "image_size": 32, **keys}
    return DataConfig(root=root, **keys)


def test_digits():
    data = config(name="digits", image_size=None)
    info = describe(data)
    assert (info.num_train, info.num_test, info.num_classes) == (1438, 359, 10)
    assert info.image_shape == (1, 8, 8)
    train = open_split(data, "train")
    pixels = torch.stack([train[i][0] for i in range(len(train))]).float() / 255
    assert pixels.mean().item() == pytest.approx(info.mean[0], abs=0.01)
    assert pixels.std().item() == pytest.approx(info.std[0], abs=0.01)
    test = open_split(data, "test")
    labels = [test[i][1] for i in range(len(test))]
    assert min(labels.count(c) for c in range(10)) > 20


def test_digits_can_be_resized():
    data = config(name="digits", image_size=16)
    assert describe(data).image_shape == (1, 16, 16)
    assert open_split(data, "test")[0][0].shape == (1, 16, 16)


def test_synthetic_is_learnable_and_the_same_everywhere():
    data = config(name="synthetic")
    train, test = open_split(data, "train"), open_split(data, "test")
    assert torch.equal(train[7][0], open_split(data, "train")[7][0])
    assert not torch.equal(train[7][0], test[7][0])
    same = (train[7][0].float() - test[7][0].float()).abs().mean()
    other = (train[7][0].float() - test[8][0].float()).abs().mean()
    assert same < other


def test_imagefolder(folder):
    info = describe(config(folder))
    assert (info.num_train, info.num_test, info.num_classes) == (10, 4, 2)
    pixels, label = open_split(config(folder), "train")[6]
    assert label == 1
    assert torch.equal(pixels, image(11))


def test_imagefolder_takes_val_for_test(folder):
    (folder / "test").rename(folder / "val")
    assert describe(config(folder)).num_test == 4


def test_images_are_fitted_and_made_rgb(tmp_path, folder):
    path = folder / "train" / "cat" / "0.PNG"
    Image.fromarray(image(0, 40, 60)[0].numpy()).save(path)
    pixels, _ = open_split(config(folder), "train")[0]
    assert pixels.shape == (3, 32, 32)
    assert torch.equal(pixels[0], pixels[1])
    assert describe(config(folder, image_size=None)).image_shape == (3, 224, 224)


def test_info_survives_json():
    info = DataInfo(1, 2, 3, (3, 4, 5), (0.5,), (0.25,))
    assert DataInfo(1, 2, 3, [3, 4, 5], [0.5], [0.25]) == info


@pytest.mark.parametrize("limit", [2, 5, 10, 99])
def test_limit_is_balanced(folder, limit):
    train = open_split(config(folder, limit=limit), "train")
    labels = [train[i][1] for i in range(len(train))]
    assert len(labels) == min(limit, 10)
    assert abs(labels.count(0) - labels.count(1)) <= 1


def remove(path):
    for entry in path.iterdir():
        entry.unlink()
    path.rmdir()


@pytest.mark.parametrize(
    ("harm", "message"),
    [
        (lambda p: None, None),
        (lambda p: remove(p / "train" / "cat"), "same class folders; not in both: cat"),
        (lambda p: (p / "train" / "emu").mkdir(), "emu"),
        (lambda p: [f.unlink() for f in (p / "test" / "dog").iterdir()], "dog holds no images"),
        (lambda p: (p / "test").rename(p / "tset"), "val is missing; imagefolder needs"),
        (lambda p: (p / "train").rename(p / "t"), "train is missing"),
    ],
)
def test_broken_folders(folder, harm, message):
    harm(folder)
    if message is None:
        describe(config(folder))
        return
    with pytest.raises(UserError, match=message) as caught:
        describe(config(folder))
    assert "\n" not in str(caught.value)


def test_other_mistakes(folder):
    with pytest.raises(UserError, match="not a folder"):
        describe(config(folder / "nowhere"))
    with pytest.raises(UserError, match="only 10 samples"):
        describe(config(folder, batch_size=11))
    with pytest.raises(UserError, match="does not hold cifar10; get it once"):
        describe(config(folder, name="cifar10"))


@pytest.mark.parametrize("damage", [b"", b"no image at all", None])
def test_damaged_images_are_named(folder, damage):
    path = folder / "train" / "cat" / "3.jpg"
    write(image(0), path)
    path.write_bytes(path.read_bytes()[:300] if damage is None else damage)
    train = open_split(config(folder), "train")
    index = next(i for i in range(len(train)) if train.paths[i].endswith("3.jpg"))
    with pytest.raises(UserError, match=r"cat/3\.jpg cannot be decoded"):
        train[index]


@pytest.mark.skipif(not CIFAR10, reason="PIPELINE_LOCAL_CIFAR10 does not name the CIFAR-10 folder")
def test_real_cifar10():
    data = config(Path(CIFAR10 or "."))
    info = describe(data)
    assert (info.num_train, info.num_test, info.num_classes) == (50_000, 10_000, 10)
    pixels, label = open_split(data, "train")[49_999]
    assert pixels.shape == (3, 32, 32)
    assert label == 9
