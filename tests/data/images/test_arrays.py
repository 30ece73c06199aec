import pickle

import numpy as np
import pytest
import torch
import torchvision
from sklearn.datasets import load_digits

from pipeline_local.data.images.arrays import open_cifar, open_digits
from pipeline_local.errors import UserError


def test_digits_splits_share_no_sample_and_are_balanced():
    train, test = open_digits("train"), open_digits("test")
    assert (len(train), len(test)) == (1442, 355)
    assert test.labels.bincount().tolist() == [35, 36, 35, 36, 36, 36, 36, 35, 34, 36]
    whole = {image.tobytes() for image in load_digits().images.astype(np.uint8)}
    assert len(whole) == 1797
    levels = torch.cat([train.images, test.images]).double().mul(16 / 255).round().byte()
    assert {image.numpy().tobytes() for image in levels} == whole


def test_digits_are_uint8_in_one_channel_over_the_whole_range():
    image, label = open_digits("train")[0]
    assert (image.shape, image.dtype, label) == ((1, 8, 8), torch.uint8, 0)
    images = open_digits("train").images
    assert (int(images.min()), int(images.max())) == (0, 255)


def write_cifar10(root, monkeypatch):
    """Two images per file in CIFAR-10's own format, whose checksums nobody compares."""
    monkeypatch.setattr(torchvision.datasets.CIFAR10, "_check_integrity", lambda self: True)
    monkeypatch.setattr(torchvision.datasets.CIFAR10, "_load_meta", lambda self: None)
    monkeypatch.setattr(torchvision.datasets.CIFAR10, "classes", list("ab"), raising=False)
    folder = root / "cifar-10-batches-py"
    folder.mkdir()
    for number, name in enumerate([*(f"data_batch_{i}" for i in range(1, 6)), "test_batch"]):
        data = np.arange(2 * 3072).reshape(2, 3072) % 251 + number
        (folder / name).write_bytes(pickle.dumps({"data": data.astype(np.uint8), "labels": [0, 1]}))


def test_cifar_pixels_are_channels_first(tmp_path, monkeypatch):
    write_cifar10(tmp_path, monkeypatch)
    train, test = (open_cifar("cifar10", tmp_path, split) for split in ("train", "test"))
    assert (len(train), len(test), train.classes) == (10, 2, ("a", "b"))
    image, label = test[1]
    assert label == 1
    expected = torch.arange(3072, 6144).remainder(251).add(5).byte().view(3, 32, 32)
    assert torch.equal(image, expected)


@pytest.mark.parametrize(("name", "cls"), [("cifar10", "CIFAR10"), ("cifar100", "CIFAR100")])
def test_absent_cifar_says_how_to_get_it(tmp_path, name, cls):
    with pytest.raises(
        UserError, match=f"got .*; download it with: .*{cls}.*download=True"
    ) as info:
        open_cifar(name, tmp_path, "train")
    assert "\n" not in str(info.value)


class Trap:
    """Makes a file when it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (str(self.path), "w")


def test_a_forged_cifar_file_is_never_unpickled(tmp_path):
    """torchvision reads pickles, but compares their checksums first."""
    folder = tmp_path / "cifar-10-batches-py"
    folder.mkdir()
    for name in [*(f"data_batch_{i}" for i in range(1, 6)), "test_batch", "batches.meta"]:
        (folder / name).write_bytes(pickle.dumps(Trap(tmp_path / "made")))
    with pytest.raises(UserError, match="no intact CIFAR10"):
        open_cifar("cifar10", tmp_path, "train")
    assert not (tmp_path / "made").exists()
