"""A part of a data set: fixed, class-balanced, independent of every seed."""

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from pipeline_local.errors import UserError, counted


class Dataset(Protocol):
    """Images as they are stored, found by index.

    `image, label = dataset[index]`: a uint8 image [C, H, W], and its label in
    [0, len(classes)). Sizes may differ between images of one folder; `augment` makes them equal.
    """

    @property
    def labels(self) -> Tensor:
        """All labels [N], int64, known without reading an image."""

    @property
    def classes(self) -> tuple[str, ...]:
        """The name of each label."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> tuple[Tensor, int]: ...


def check_dataset(source: str, dataset: Dataset) -> None:
    """Refuse what is no `Dataset`, as far as that shows without reading an image.

    Args:
        source: what gave it, for messages.
        dataset: any object.

    Raises:
        UserError: it lacks something, or its labels do not fit.
    """
    wanted = ("__len__", "__getitem__", "labels", "classes")
    if lacks := [name for name in wanted if not hasattr(dataset, name)]:
        raise UserError(
            f"{source} must be a data set with {', '.join(wanted)}: got {type(dataset).__name__}"
            f" without {', '.join(lacks)}; add what it lacks"
        )
    labels, classes = dataset.labels, dataset.classes
    if not isinstance(labels, Tensor) or labels.dtype != torch.int64 or labels.ndim != 1:
        got = f"{labels.dtype} {list(labels.shape)}" if isinstance(labels, Tensor) else type(labels)
        raise UserError(f"{source} must have int64 labels [N], got {got}; convert them")
    if len(labels) != len(dataset) or not len(labels):
        raise UserError(
            f"{source} must have one label per sample, and samples: got"
            f" {counted(len(labels), 'label')} of {counted(len(dataset), 'sample')}; correct it"
        )
    if not isinstance(classes, tuple) or not all(isinstance(name, str) for name in classes):
        raise UserError(f"{source} must have a tuple of class names, got {type(classes).__name__}")
    if int(labels.min()) < 0 or int(labels.max()) >= len(classes):
        raise UserError(
            f"{source} must have labels in 0 to {len(classes) - 1}, one per class: got"
            f" {int(labels.min())} to {int(labels.max())}; correct either"
        )


def check_image(name: str, image: object, channels: int | None = None) -> None:
    """Refuse what is no image as stored: floating-point pixels would be divided by 255 once more.

    Args:
        name: of the data set, as `data.name` has it.
        image: what the data set gives.
        channels: that it must have; None: any number.

    Raises:
        UserError: it is no uint8 tensor [C, H, W], or has other channels.
    """
    if not isinstance(image, Tensor) or image.dtype != torch.uint8 or image.ndim != 3:
        got = type(image).__name__
        if isinstance(image, Tensor):
            got = f"{image.dtype} {list(image.shape)}"
        scale = " by (x * 255).round().to(torch.uint8)" if "float" in got else ""
        raise UserError(
            f"data.name: {name} must give uint8 images [C, H, W] with values from 0 to 255, got"
            f" {got}; convert them{scale}"
        )
    if channels not in (None, image.shape[0]):
        raise UserError(
            f"data.name: {name} must give images of equal channels, got {image.shape[0]} and"
            f" {channels}; convert them"
        )


@dataclass(frozen=True)
class Subset:
    """The samples `indices` [n] (int64) of a data set."""

    whole: Dataset
    indices: Tensor

    @property
    def labels(self) -> Tensor:
        return self.whole.labels[self.indices]

    @property
    def classes(self) -> tuple[str, ...]:
        return self.whole.classes

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return self.whole[int(self.indices[index])]


def rank_in_class(labels: Tensor) -> Tensor:
    """For each sample the number of earlier samples of its class: [N], int64."""
    order = labels.argsort(stable=True)
    counts = labels.bincount()
    class_starts = counts.cumsum(0) - counts
    ranks = torch.empty_like(labels)
    ranks[order] = torch.arange(len(labels)) - class_starts[labels[order]]
    return ranks


def balanced_subset(dataset: Dataset, limit: int) -> Dataset:
    """At most `limit` samples: the first of every class, then the second of every class, ...

    A smaller subset lies within a larger one.
    """
    if limit >= len(dataset):
        return dataset
    chosen = rank_in_class(dataset.labels).argsort(stable=True)[:limit]
    return Subset(dataset, chosen.sort().values)
