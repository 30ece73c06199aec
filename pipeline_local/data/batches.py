"""Batches: of the training set from any step on, and of the whole test set."""

from collections.abc import Generator
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from torch.utils.data import DataLoader
from torch.utils.data import Dataset as TorchDataset

from pipeline_local import seeds
from pipeline_local.config import DataConfig
from pipeline_local.data.augment import Augment
from pipeline_local.data.datasets import DataInfo, Dataset, open_split
from pipeline_local.data.sampler import StepSampler, Ticket
from pipeline_local.errors import UserError

IGNORE = -100
"""Label of a padding sample."""

Sample = tuple[Tensor, int]


def train_batches(
    data: DataConfig, info: DataInfo, seed: int, start: int, num_steps: int
) -> Generator[tuple[Tensor, Tensor]]:
    """The batches of steps `start`, `start + 1`, ...

    Yields:
        uint8 images [B, C, H, W] and labels [B] int64; with mixup float images in [0, 255] and
        soft targets [B, classes] float32.

    Raises:
        UserError: an image cannot be decoded.
    """
    steps = range(start, start + num_steps)
    dataset = _Augmented(open_split(data, "train"), Augment(data, info.image_shape[1], seed))
    sampler = StepSampler(len(dataset), data.batch_size, seed, steps)
    for step, (images, labels) in zip(steps, _load(dataset, sampler, data.workers), strict=True):
        if data.mixup > 0:
            yield mixup(images, labels, data.mixup, info.num_classes, seed, step)
        else:
            yield images, labels


def evaluation_batches(data: DataConfig, info: DataInfo) -> Generator[tuple[Tensor, Tensor]]:
    """The test set in order; the last batch is padded with samples labelled IGNORE.

    Yields:
        uint8 images [B, C, H, W] and labels [B] int64.
    """
    dataset = _Augmented(open_split(data, "test"), None)
    tickets = [(0, index) for index in range(len(dataset))]
    size = data.batch_size
    sampler = [tickets[i : i + size] for i in range(0, len(tickets), size)]
    for images, labels in _load(dataset, sampler, data.workers):
        missing = size - len(labels)
        yield (
            functional.pad(images, (0, 0, 0, 0, 0, 0, 0, missing)),
            functional.pad(labels, (0, missing), value=IGNORE),
        )


def normalize(images: Tensor, info: DataInfo, dtype: torch.dtype) -> Tensor:
    """Pixels in [0, 255] [B, C, H, W] to zero mean and unit deviation per channel."""
    mean = torch.tensor(info.mean, dtype=dtype, device=images.device).view(-1, 1, 1)
    std = torch.tensor(info.std, dtype=dtype, device=images.device).view(-1, 1, 1)
    return (images.to(dtype) / 255 - mean) / std


def mixup(
    images: Tensor, labels: Tensor, alpha: float, num_classes: int, seed: int, step: int
) -> tuple[Tensor, Tensor]:
    """Mix each sample with its successor (Zhang et al., 2018); a pure function of (seed, step)."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seeds.derive(seed, "mixup", step))
        share = float(torch.distributions.Beta(alpha, alpha).sample())
    targets = functional.one_hot(labels, num_classes).float()
    mixed = images.float()
    return (
        torch.lerp(mixed.roll(1, 0), mixed, share),
        torch.lerp(targets.roll(1, 0), targets, share),
    )


class _Augmented(TorchDataset[Any]):
    """Tickets -> samples. A user's mistake travels as a value, so workers do not wrap it."""

    def __init__(self, dataset: Dataset, augment: Augment | None) -> None:
        self._dataset = dataset
        self._augment = augment

    def __len__(self) -> int:
        return len(self._dataset)

    def __getitems__(self, tickets: list[Ticket]) -> list[Sample] | UserError:
        with torch.random.fork_rng(devices=[]):
            try:
                return [self._sample(*ticket) for ticket in tickets]
            except UserError as error:
                return error

    def _sample(self, epoch: int, index: int) -> Sample:
        image, label = self._dataset[index]
        if self._augment is not None:
            image = self._augment(image, epoch, index)
        return image, label


def _collate(samples: list[Sample] | UserError) -> tuple[Tensor, Tensor] | UserError:
    if isinstance(samples, UserError):
        return samples
    images, labels = zip(*samples, strict=True)
    return torch.stack(images), torch.tensor(labels)


def _load(dataset: _Augmented, sampler: Any, workers: int) -> Generator[tuple[Tensor, Tensor]]:  # noqa: ANN401
    """Through torch's loader: in this process, or in workers that are forked from it."""
    loader: DataLoader[Any] = DataLoader(
        dataset,
        batch_sampler=sampler,
        num_workers=workers,
        collate_fn=_collate,
        pin_memory=torch.cuda.is_available(),
        generator=torch.Generator(),  # or the loader draws from the global one
        multiprocessing_context="fork" if workers else None,
    )
    for batch in loader:
        if isinstance(batch, UserError):
            raise batch
        yield batch[0], batch[1]
