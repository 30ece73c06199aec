"""The order of the data: a pure function of (seed, epoch), seekable to any step."""

from collections.abc import Iterator

import torch

from pipeline_local import seeds

Ticket = tuple[int, int]
"""(epoch, index): names one augmented sample."""


def epoch_order(num_samples: int, seed: int, epoch: int) -> list[int]:
    """The permutation of an epoch."""
    generator = seeds.generator(seed, "order", epoch)
    order: list[int] = torch.randperm(num_samples, generator=generator).tolist()
    return order


class StepSampler:
    """For each of the steps, the tickets of its batch; what is ragged at an epoch's end is left.

    Args:
        num_samples: of the training set, at least `batch_size`.
        batch_size: samples per step.
        seed: of the run.
        steps: numbers of the optimizer steps, from anywhere.
    """

    def __init__(self, num_samples: int, batch_size: int, seed: int, steps: range) -> None:
        self._num_samples = num_samples
        self._batch_size = batch_size
        self._seed = seed
        self._steps = steps

    def __len__(self) -> int:
        return len(self._steps)

    def __iter__(self) -> Iterator[list[Ticket]]:
        per_epoch = self._num_samples // self._batch_size
        current, order = -1, []
        for step in self._steps:
            epoch, batch = divmod(step, per_epoch)
            if epoch != current:
                current, order = epoch, epoch_order(self._num_samples, self._seed, epoch)
            chosen = order[batch * self._batch_size : (batch + 1) * self._batch_size]
            yield [(epoch, index) for index in chosen]
