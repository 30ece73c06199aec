"""A part of a data set: fixed, class-balanced, independent of every seed."""

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor


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
