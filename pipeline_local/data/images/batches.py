"""Batches: every one is a pure function of its step, so loading may start at any step.

Loader processes (`loading.py`) only share out the steps.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from random import Random

import torch
from torch import Tensor

from pipeline_local.config import DataConfig
from pipeline_local.data.augment import augment, fit
from pipeline_local.data.images.datasets import open_split
from pipeline_local.data.images.mixup import mixup
from pipeline_local.data.images.skipping import read_or_next, read_or_none
from pipeline_local.data.images.subset import Dataset, check_image
from pipeline_local.data.info import DataInfo
from pipeline_local.data.loading import Batch, BatchSource, load
from pipeline_local.data.sampler import train_indices
from pipeline_local.data.share import WHOLE, Share
from pipeline_local.data.skipped import Skipped
from pipeline_local.errors import UserError
from pipeline_local.layout import IGNORE_LABEL
from pipeline_local.seeds import derive


def train_batches(
    data: DataConfig,
    info: DataInfo,
    seed: int,
    start_step: int,
    num_steps: int,
    skipped: Skipped | None = None,
    share: Share = WHOLE,
) -> Iterator[Batch]:
    """The batches of steps `start_step` to `start_step + num_steps - 1`, counted from 0.

    Yields:
        uint8 images [B, C, H, W] and int64 labels [B]. With mixup: float32 images, still in
        [0, 255], and float32 targets [B, num_classes]. `Normalize` takes either.

    `skipped` gets the images that are passed over with data.on_error=skip.

    Raises:
        UserError: an image cannot be read; with data.on_error=skip, none of its class.
    """
    source = ImageTrainSource(open_split(data, "train"), data, info, seed, share)
    steps = range(start_step, start_step + num_steps)
    return _load(source, steps, data, skipped or Skipped())


def test_batches(
    data: DataConfig,
    info: DataInfo,
    skipped: Skipped | None = None,  # noqa: PT028 (no test)
    share: Share = WHOLE,  # noqa: PT028 (no test)
) -> Iterator[Batch]:
    """All test samples in order, none of them augmented.

    Yields:
        uint8 images [B, C, H, W] and int64 labels [B]. The last batch is filled up with zeros and
        the label `IGNORE_LABEL`, which with data.on_error=skip also stands for what cannot be read;
        `skipped` gets that.

    Raises:
        UserError: an image cannot be read; with data.on_error=skip, not one can.
    """
    source = ImageTestSource(open_split(data, "test"), data, info, share)
    num_batches = -(-info.num_test // data.batch_size)
    loaded = _load(source, range(num_batches), data, skipped or Skipped())
    readable = False
    for number, (images, labels) in enumerate(loaded, start=1):
        readable = readable or bool((labels != IGNORE_LABEL).any())
        if number == num_batches and not readable and share.is_whole:
            raise UserError("not one test image can be read: got only broken ones; repair them")
        yield images, labels


@dataclass(frozen=True)
class ImageTrainSource:
    """The training batches of a run."""

    dataset: Dataset
    data: DataConfig
    info: DataInfo
    seed: int
    share: Share = WHOLE
    skipped: list[str] = field(default_factory=list)

    def batch(self, step: int) -> Batch:
        pairs = train_indices(len(self.dataset), self.data.batch_size, self.seed, step)
        if self.data.mixup == 0:
            own = [pairs[row] for row in self.share.rows(len(pairs))]
            return _stack([self._sample(epoch, index) for epoch, index in own])
        # it mixes each image with another one of the batch
        images, labels = _stack([self._sample(epoch, index) for epoch, index in pairs])
        x, y = mixup(images, labels, self.info.num_classes, self.data.mixup, self.seed, step)
        return self.share.of(x), self.share.of(y)

    def _sample(self, epoch: int, index: int) -> tuple[Tensor, int]:
        skip = self.data.on_error == "skip"
        image, label = (
            read_or_next(self.dataset, index, self.skipped) if skip else self.dataset[index]
        )
        check_image(self.data.name, image, self.info.sample_shape[0])
        draw = Random(derive(self.seed, "augment", epoch, index))
        return augment(image, self.info.sample_shape[1], self.data.augment, draw), label


@dataclass(frozen=True)
class ImageTestSource:
    """The test batches, the last one filled up.

    In the place of what is passed over there is another image of the batch, without a label: the
    network may compute with the batch as a whole, and must not see an empty one.
    """

    __test__ = False  # for pytest

    dataset: Dataset
    data: DataConfig
    info: DataInfo
    share: Share = WHOLE
    skipped: list[str] = field(default_factory=list)

    def batch(self, step: int) -> Batch:
        start, count = step * self.data.batch_size, len(self.dataset)
        rows = [start + row for row in self.share.rows(self.data.batch_size)]
        found = [self._sample(row) for row in rows if row < count]
        empty = torch.zeros(self.info.sample_shape, dtype=torch.uint8), IGNORE_LABEL
        other = next(((image, IGNORE_LABEL) for image, _ in filter(None, found)), empty)
        padding = [empty] * (len(rows) - len(found))
        return _stack([sample or other for sample in found] + padding)

    def _sample(self, index: int) -> tuple[Tensor, int] | None:
        stored = self._stored(index)
        if stored is None:
            return None
        image, label = stored
        check_image(self.data.name, image, self.info.sample_shape[0])
        return fit(image, self.info.sample_shape[1]), label

    def _stored(self, index: int) -> tuple[Tensor, int] | None:
        if self.data.on_error == "skip":
            return read_or_none(self.dataset, index, self.skipped)
        return self.dataset[index]


def _stack(samples: list[tuple[Tensor, int]]) -> Batch:
    images, labels = zip(*samples, strict=True)
    return torch.stack(images), torch.tensor(labels)


def _load(source: BatchSource, steps: range, data: DataConfig, skipped: Skipped) -> Iterator[Batch]:
    if data.workers and (data.root is not None or data.augment == "trivial"):
        import torchvision.transforms.v2  # noqa: F401 (now, so that not every loader has to)
    for batch, paths in load(source, steps, data.workers):
        skipped.add(paths)
        yield batch
