"""Batches: every one is a pure function of its step, so loading may start at any step.

Loader processes (`loaders.py`) only share out the steps.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from random import Random
from typing import Protocol

import torch
from torch import Tensor
from torch.utils.data import DataLoader

from pipeline_local.config import DataConfig
from pipeline_local.data.augment import augment, fit
from pipeline_local.data.datasets import DataInfo, open_split
from pipeline_local.data.loaders import obey_rank_only, start_server
from pipeline_local.data.mixup import mixup
from pipeline_local.data.sampler import train_indices
from pipeline_local.data.subset import Dataset
from pipeline_local.errors import UserError
from pipeline_local.seeds import derive

Batch = tuple[Tensor, Tensor]

PADDING_LABEL = -100
"""Marks the samples that fill up the last test batch; torch's losses ignore it by default."""


def train_batches(
    data: DataConfig, info: DataInfo, seed: int, start_step: int, num_steps: int
) -> Iterator[Batch]:
    """The batches of steps `start_step` to `start_step + num_steps - 1`, counted from 0.

    Yields:
        uint8 images [B, C, H, W] and int64 labels [B]. With mixup: float32 images, still in
        [0, 255], and float32 targets [B, num_classes]. `Normalize` takes either.

    Raises:
        UserError: an image cannot be read.
    """
    source = TrainSource(open_split(data, "train"), data, info, seed)
    return _load(source, range(start_step, start_step + num_steps), data.workers)


def test_batches(data: DataConfig, info: DataInfo) -> Iterator[Batch]:
    """All test samples in order, none of them augmented.

    Yields:
        uint8 images [B, C, H, W] and int64 labels [B]. The last batch is filled up with zeros and
        the label `PADDING_LABEL`.

    Raises:
        UserError: an image cannot be read.
    """
    source = TestSource(open_split(data, "test"), data.batch_size, info)
    num_batches = -(-info.num_test // data.batch_size)
    return _load(source, range(num_batches), data.workers)


class BatchSource(Protocol):
    """Computes batch number `step`, whichever were computed before."""

    def batch(self, step: int) -> Batch: ...


@dataclass(frozen=True)
class TrainSource:
    """The training batches of a run."""

    dataset: Dataset
    data: DataConfig
    info: DataInfo
    seed: int

    def batch(self, step: int) -> Batch:
        pairs = train_indices(len(self.dataset), self.data.batch_size, self.seed, step)
        images, labels = _stack([self._sample(epoch, index) for epoch, index in pairs])
        if self.data.mixup == 0:
            return images, labels
        return mixup(images, labels, self.info.num_classes, self.data.mixup, self.seed, step)

    def _sample(self, epoch: int, index: int) -> tuple[Tensor, int]:
        image, label = self.dataset[index]
        draw = Random(derive(self.seed, "augment", epoch, index))
        return augment(image, self.info.image_shape[1], self.data.augment, draw), label


@dataclass(frozen=True)
class TestSource:
    """The test batches, the last one filled up."""

    __test__ = False  # for pytest

    dataset: Dataset
    batch_size: int
    info: DataInfo

    def batch(self, step: int) -> Batch:
        start = step * self.batch_size
        stop = min(start + self.batch_size, len(self.dataset))
        samples = [self._sample(index) for index in range(start, stop)]
        nothing = torch.zeros(self.info.image_shape, dtype=torch.uint8)
        return _stack(samples + [(nothing, PADDING_LABEL)] * (self.batch_size - len(samples)))

    def _sample(self, index: int) -> tuple[Tensor, int]:
        image, label = self.dataset[index]
        return fit(image, self.info.image_shape[1]), label


def _stack(samples: list[tuple[Tensor, int]]) -> Batch:
    images, labels = zip(*samples, strict=True)
    return torch.stack(images), torch.tensor(labels)


@dataclass(frozen=True)
class _Steps(torch.utils.data.Dataset[Batch | UserError]):
    """A source as a torch data set whose items are whole batches.

    A loader process would wrap an exception into its traceback, so a user's mistake is a value.
    """

    source: BatchSource

    def __getitem__(self, step: int) -> Batch | UserError:
        try:
            return self.source.batch(step)
        except UserError as error:
            return error


def _load(source: BatchSource, steps: range, workers: int) -> Iterator[Batch]:
    """The loader processes end with the iterator, also when it is dropped or closed early."""
    workers = min(workers, len(steps))
    if workers:
        start_server(preload=__name__)
    loader = DataLoader(
        _Steps(source),
        batch_size=None,
        sampler=steps,
        num_workers=workers,
        multiprocessing_context="forkserver" if workers else None,
        worker_init_fn=obey_rank_only,
        pin_memory=torch.cuda.is_available(),
        generator=torch.Generator(),  # or the loader draws from the caller's
    )
    for item in loader:
        if isinstance(item, UserError):
            raise item
        images, labels = item
        yield images, labels
