"""The order of the training samples: a pure function of (seed, epoch), so any step is found."""

from functools import lru_cache

import torch
from torch import Tensor

from pipeline_local.errors import counted
from pipeline_local.seeds import generator


def steps_per_epoch(num_samples: int, batch_size: int) -> int:
    """Full batches in one pass; the samples that do not fill a batch are left out of that pass.

    Raises:
        ValueError: not even one batch can be filled.
    """
    if batch_size > num_samples:
        raise ValueError(
            f"a batch of {batch_size} cannot be filled from {counted(num_samples, 'sample')}"
        )
    return num_samples // batch_size


def epoch_order(num_samples: int, seed: int, epoch: int) -> Tensor:
    """The permutation [num_samples] (int64) in which an epoch visits the samples."""
    return torch.randperm(num_samples, generator=generator(seed, "order", epoch))


_latest_order = lru_cache(maxsize=1)(epoch_order)


def train_indices(num_samples: int, batch_size: int, seed: int, step: int) -> list[tuple[int, int]]:
    """The (epoch, sample) pairs of one step, counted from 0.

    A batch never spans two epochs. Only the first call within an epoch draws its permutation.
    """
    epoch, position = divmod(step, steps_per_epoch(num_samples, batch_size))
    order = _latest_order(num_samples, seed, epoch)
    batch = order[position * batch_size : (position + 1) * batch_size]
    return [(epoch, sample) for sample in batch.tolist()]
