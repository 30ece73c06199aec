"""Datasets: an index gives an image and its label. Only the first stage's rank opens one."""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torchvision.transforms.v2 import functional

from pipeline_local import seeds
from pipeline_local.config import DataConfig
from pipeline_local.errors import UserError

Split = Literal["train", "test"]
IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
CIFAR = {
    "cifar10": ((0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)),
    "cifar100": ((0.5071, 0.4865, 0.4409), (0.2673, 0.2564, 0.2762)),
}
EXTENSIONS = (".jpg", ".jpeg", ".png", ".webp", ".bmp")


@dataclass(frozen=True)
class DataInfo:
    """The facts about the data that every rank needs; plain enough for JSON.

    Attributes:
        image_shape: channels, height, width after the transforms.
        mean: per channel, of pixels in [0, 1].
        std: per channel, of pixels in [0, 1].
    """

    num_train: int
    num_test: int
    num_classes: int
    image_shape: tuple[int, int, int]
    mean: tuple[float, ...]
    std: tuple[float, ...]

    def __post_init__(self) -> None:
        for name in ("image_shape", "mean", "std"):  # JSON has no tuples
            object.__setattr__(self, name, tuple(getattr(self, name)))


class Dataset(Protocol):
    """Images by index."""

    def __len__(self) -> int:
        """Number of samples."""
        ...

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        """A uint8 image [C, H, W] and its label."""
        ...


@dataclass(frozen=True)
class Arrays:
    """Images in memory: uint8 [N, C, H, W]."""

    images: Tensor
    labels: Sequence[int]
    image_size: int

    def __len__(self) -> int:
        """Number of samples."""
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        """An image [C, H, W], resized if need be, and its label."""
        return _fit(self.images[index], self.image_size), self.labels[index]


@dataclass(frozen=True)
class Files:
    """Image files, decoded when they are asked for."""

    paths: Sequence[str]
    labels: Sequence[int]
    image_size: int | None
    """None: leave the size to the augmentation."""

    def __len__(self) -> int:
        """Number of samples."""
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        """An RGB image [3, H, W] and its label.

        Raises:
            UserError: the file is no image, or damaged; the message names it.
        """
        try:
            with Image.open(self.paths[index]) as file:
                pixels = np.array(file.convert("RGB"))
        except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
            raise UserError(
                f"image {self.paths[index]} cannot be decoded ({error}); repair or remove it"
            ) from None
        image = torch.from_numpy(pixels).permute(2, 0, 1)
        if self.image_size is not None:
            image = _fit(image, self.image_size)
        return image, self.labels[index]


@dataclass(frozen=True)
class Synthetic:
    """Noisy class patterns, made on the fly; learnable, and the same everywhere."""

    num_samples: int
    image_size: int
    split: Split

    def __len__(self) -> int:
        """Number of samples."""
        return self.num_samples

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        """A uint8 image [3, H, W] and its label."""
        label, side = index % 10, self.image_size
        coarse = torch.rand(1, 3, 4, 4, generator=seeds.generator(0, "pattern", label))
        pattern = torch.nn.functional.interpolate(coarse, (side, side), mode="bilinear")[0]
        generator = seeds.generator(0, "synthetic", self.split, index)
        noise = torch.randn(3, side, side, generator=generator)
        return ((pattern + 0.3 * noise).clamp(0, 1) * 255).to(torch.uint8), label


def describe(data: DataConfig) -> DataInfo:
    """Look at the data without reading images.

    Raises:
        UserError: it is not there, or not as it must be.
    """
    train, test = open_split(data, "train"), open_split(data, "test")
    if data.batch_size > len(train):
        raise UserError(
            f"data.batch_size: got {data.batch_size}, but the training set has only"
            f" {len(train)} samples; lower it"
        )
    mean, std = IMAGENET
    channels, num_classes, size = 3, 10, data.image_size or 32
    if data.name == "digits":
        channels, size = 1, data.image_size or 8
        mean, std = (0.3053,), (0.3760,)  # type: ignore[assignment]
    elif data.name in CIFAR:
        mean, std = CIFAR[data.name]
        num_classes = 100 if data.name == "cifar100" else 10
    elif data.name == "imagefolder":
        num_classes, size = len(_classes(_root(data) / "train")), data.image_size or 224
    return DataInfo(len(train), len(test), num_classes, (channels, size, size), mean, std)


def open_split(data: DataConfig, split: Split) -> Dataset:
    """Open the training or test set, cut to `data.limit`.

    Raises:
        UserError: it is not there, or not as it must be.
    """
    if data.name == "synthetic":
        sizes = {"train": 4096, "test": 1024}
        count = min(sizes[split], data.limit or sizes[split])
        return Synthetic(count, data.image_size or 32, split)
    if data.name == "imagefolder":
        paths, labels = _scan(_root(data), split)
        chosen = _balanced(labels, data.limit)
        size = data.image_size or 224
        whole = split == "test" or data.augment == "none" or size <= SMALL
        return Files(
            [paths[i] for i in chosen], [labels[i] for i in chosen], size if whole else None
        )
    images, labels = _digits(split) if data.name == "digits" else _cifar(data, split)
    chosen = _balanced(labels, data.limit)
    size = data.image_size or images.shape[-1]
    return Arrays(images[torch.tensor(chosen)], [labels[i] for i in chosen], size)


SMALL = 64
"""Up to this side, images are cropped after padding; above, they are cropped and resized."""


def _fit(image: Tensor, size: int) -> Tensor:
    """Resize the shorter side and crop the centre; an image of that size stays as it is."""
    if image.shape[1:] == (size, size):
        return image
    short = size if size <= SMALL else round(size * 256 / 224)
    resized = functional.resize(image, [short], antialias=True)
    cropped: Tensor = functional.center_crop(resized, [size, size])
    return cropped


def _balanced(labels: Sequence[int], limit: int | None) -> list[int]:
    """The first samples of each class in turn, `limit` in all, in their original order."""
    if limit is None or limit >= len(labels):
        return list(range(len(labels)))
    seen: dict[int, int] = {}
    turns = []
    for index, label in enumerate(labels):
        seen[label] = seen.get(label, 0) + 1
        turns.append((seen[label], label, index))
    return sorted(index for _, _, index in sorted(turns)[:limit])


def _digits(split: Split) -> tuple[Tensor, list[int]]:
    """scikit-learn's handwritten digits, 8x8; every fifth is for testing."""
    from sklearn.datasets import load_digits

    bunch = load_digits()
    images = torch.from_numpy(np.round(bunch.images * (255 / 16)).astype(np.uint8)).unsqueeze(1)
    test = torch.arange(len(images)) % 5 == 4
    chosen = test if split == "test" else ~test
    return images[chosen], torch.from_numpy(bunch.target)[chosen].tolist()


def _cifar(data: DataConfig, split: Split) -> tuple[Tensor, list[int]]:
    from torchvision.datasets import CIFAR10, CIFAR100

    dataset = CIFAR100 if data.name == "cifar100" else CIFAR10
    root = _root(data)
    try:
        opened = dataset(str(root), train=split == "train", download=False)
    except RuntimeError:
        name = dataset.__name__
        raise UserError(
            f"data.root: {root} does not hold {data.name}; get it once with python -c"
            f" \"from torchvision.datasets import {name}; {name}('{root}', download=True)\""
        ) from None
    images = torch.from_numpy(opened.data).permute(0, 3, 1, 2).contiguous()
    return images, list(opened.targets)


def _root(data: DataConfig) -> Path:
    assert data.root is not None, "checked with the configuration"
    if not data.root.is_dir():
        raise UserError(f"data.root: {data.root} is not a folder; name the folder of the data")
    return data.root


def _scan(root: Path, split: Split) -> tuple[list[str], list[int]]:
    """Paths and labels below root/split/class, in sorted order."""
    folder = root / split
    if split == "test" and not folder.is_dir():
        folder = root / "val"
    classes = _classes(folder)
    if split == "test" and classes != _classes(root / "train"):
        odd = sorted(set(classes) ^ set(_classes(root / "train")))
        raise UserError(
            f"data.root: train and {folder.name} of {root} must have the same class folders;"
            f" not in both: {', '.join(odd[:5])}"
        )
    paths, labels = [], []
    for label, name in enumerate(classes):
        found = sorted(
            entry.path
            for entry in os.scandir(folder / name)
            if entry.name.lower().endswith(EXTENSIONS)
        )
        if not found:
            raise UserError(
                f"data.root: class folder {folder / name} holds no images"
                f" ({', '.join(EXTENSIONS)}); fill or remove it"
            )
        paths += found
        labels += [label] * len(found)
    return paths, labels


def _classes(folder: Path) -> list[str]:
    if not folder.is_dir():
        raise UserError(
            f"data.root: {folder} is missing; imagefolder needs train/<class>/* and"
            f" test/<class>/* (or val/<class>/*)"
        )
    names = sorted(entry.name for entry in os.scandir(folder) if entry.is_dir())
    if not names:
        raise UserError(
            f"data.root: {folder} has no class folders; put images in {folder}/<class>/"
        )
    return names
