"""Batches of a program's own data: every one is a pure function of its step."""

from collections.abc import Iterator
from dataclasses import dataclass, field

import torch

from pipeline_local.data.given import GivenSamples
from pipeline_local.data.loading import Batch, load
from pipeline_local.data.sampler import steps_per_epoch, train_indices
from pipeline_local.data.samples import Form
from pipeline_local.data.share import WHOLE, Share
from pipeline_local.errors import UserError
from pipeline_local.layout import IGNORE_LABEL
from pipeline_local.seeds import derive


def train_batches(
    given: GivenSamples,
    batch_size: int,
    seed: int,
    start_step: int,
    num_steps: int,
    workers: int = 0,
    share: Share = WHOLE,
) -> Iterator[Batch]:
    """The batches of steps `start_step` to `start_step + num_steps - 1`, counted from 0.

    Yields:
        x [B, ...] and y [B, ...] as `given.form` says.

    Raises:
        UserError: fewer samples than one batch, a sample of another shape or dtype than the first.
    """
    if batch_size > len(given.samples):
        raise UserError(
            f"the batch size must not exceed the {len(given.samples)} training samples: got"
            f" {batch_size}; lower it"
        )
    source = GivenTrainSource(given, batch_size, seed, share)
    for batch, _ in load(source, range(start_step, start_step + num_steps), workers):
        yield batch


def test_batches(
    given: GivenSamples,
    batch_size: int,
    workers: int = 0,  # noqa: PT028 (no test)
    share: Share = WHOLE,  # noqa: PT028 (no test)
) -> Iterator[Batch]:
    """All samples in order.

    Yields:
        x [B, ...] and y [B, ...] as `given.form` says. The last batch is filled up with zeros for
        x, and for y with `IGNORE_LABEL`, or NaN where targets are floating point.

    Raises:
        UserError: a sample of another shape or dtype than the first.
    """
    num_batches = -(-len(given.samples) // batch_size)
    source = GivenTestSource(given, batch_size, share)
    for batch, _ in load(source, range(num_batches), workers):
        yield batch


@dataclass(frozen=True)
class GivenTrainSource:
    """The training batches of a run."""

    given: GivenSamples
    batch_size: int
    seed: int
    share: Share = WHOLE
    skipped: list[str] = field(default_factory=list)

    def batch(self, step: int) -> Batch:
        """What is random in a sample is a function of (seed, epoch, sample)."""
        order = self._order(step)
        own = [order[row] for row in self.share.rows(self.batch_size)]
        keys = [(i, derive(self.seed, "given", epoch, i)) for epoch, i in own]
        return self.given.samples.gather(keys, self.given.form)

    def _order(self, step: int) -> list[tuple[int, int]]:
        """The (epoch, sample) pairs of a step."""
        num_samples, size = len(self.given.samples), self.batch_size
        if self.given.shuffled:
            return train_indices(num_samples, size, self.seed, step)
        epoch, position = divmod(step, steps_per_epoch(num_samples, size))
        return [(epoch, position * size + i) for i in range(size)]


@dataclass(frozen=True)
class GivenTestSource:
    """The test batches, the last one filled up; what is random in a sample is always the same."""

    given: GivenSamples
    batch_size: int
    share: Share = WHOLE
    skipped: list[str] = field(default_factory=list)

    def batch(self, step: int) -> Batch:
        """Samples `step * batch_size` and after."""
        first, count = step * self.batch_size, len(self.given.samples)
        rows = [first + row for row in self.share.rows(self.batch_size)]
        there = [row for row in rows if row < count]
        form, missing = self.given.form, len(rows) - len(there)
        if not there:
            return _padding(missing, form)
        keys = [(i, derive(0, "given", "test", i)) for i in there]
        x, y = self.given.samples.gather(keys, form)
        if not missing:
            return x, y
        nothing, label = _padding(missing, form)
        return torch.cat([x, nothing]), torch.cat([y, label])


def _padding(missing: int, form: Form) -> Batch:
    nothing = torch.zeros(missing, *form.x_shape, dtype=form.x_dtype)
    fill = float("nan") if form.y_dtype.is_floating_point else IGNORE_LABEL
    label = torch.full((missing, *form.y_shape), fill, dtype=form.y_dtype)
    return nothing, label
