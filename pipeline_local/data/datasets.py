"""The data of a run: images or tokens that the configuration names, or what a program hands in.

Every rank knows its facts (`DataInfo`); only the first stage reads it.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from pipeline_local.config import DataConfig
from pipeline_local.data import given_batches
from pipeline_local.data.given import GivenSamples
from pipeline_local.data.images import batches
from pipeline_local.data.images import datasets as images
from pipeline_local.data.images.datasets import open_split as open_split  # public here
from pipeline_local.data.images.normalize import Normalize
from pipeline_local.data.info import DataInfo, Split
from pipeline_local.data.loading import Batch
from pipeline_local.data.registry import DATA as DATA  # complete here: all entries are imported
from pipeline_local.data.share import WHOLE, Share
from pipeline_local.data.skipped import Skipped
from pipeline_local.data.tokens import entry as tokens
from pipeline_local.data.tokens import synthetic as synthetic_tokens
from pipeline_local.errors import UserError


class RunData(Protocol):
    """What a run reads, whatever it is made of."""

    def describe(self) -> DataInfo:
        """The facts of both splits; the samples themselves are not read."""
        ...

    def train_batches(
        self,
        info: DataInfo,
        seed: int,
        start: int,
        steps: int,
        skipped: Skipped,
        share: Share = WHOLE,
    ) -> Iterator[Batch]:
        """The batches of `steps` optimizer steps from step `start` on, or a share of each."""
        ...

    def test_batches(
        self, info: DataInfo, skipped: Skipped, share: Share = WHOLE
    ) -> Iterator[Batch]:
        """The whole test split, the last batch filled up with padding, or a share of each batch."""
        ...

    def ready(
        self, info: DataInfo, dtype: torch.dtype, device: torch.device
    ) -> Callable[[Tensor], Tensor]:
        """What makes the network's input of a batch that is on the device."""
        ...

    def check_again(self, info: DataInfo, split: Split) -> DataInfo:
        """The facts of a run, with the size that one split of its data has now."""
        ...

    def passed_over(self) -> list[str]:
        """What lies with the data and is not read, in a line or two; none where nothing does."""
        ...


@dataclass(frozen=True)
class Images:
    """Images that the configuration names; normalised by the data's mean and deviation."""

    config: DataConfig

    def describe(self) -> DataInfo:
        """As `RunData.describe`."""
        return images.describe(self.config)

    def train_batches(
        self,
        info: DataInfo,
        seed: int,
        start: int,
        steps: int,
        skipped: Skipped,
        share: Share = WHOLE,
    ) -> Iterator[Batch]:
        """As `RunData.train_batches`."""
        return batches.train_batches(self.config, info, seed, start, steps, skipped, share)

    def test_batches(
        self, info: DataInfo, skipped: Skipped, share: Share = WHOLE
    ) -> Iterator[Batch]:
        """As `RunData.test_batches`."""
        return batches.test_batches(self.config, info, skipped, share)

    def ready(
        self, info: DataInfo, dtype: torch.dtype, device: torch.device
    ) -> Callable[[Tensor], Tensor]:
        """As `RunData.ready`."""
        return Normalize(info, dtype, device)

    def check_again(self, info: DataInfo, split: Split) -> DataInfo:
        """As `RunData.check_again`."""
        return images.check_again(self.config, info, split)

    def passed_over(self) -> list[str]:
        """As `RunData.passed_over`."""
        return images.passed_over(self.config)


@dataclass(frozen=True)
class GivenData:
    """Samples of a program's own; floating-point inputs get the precision of the run.

    Args:
        train: training samples.
        test: samples to evaluate on.
        num_classes: of the labels, or outputs of the network.
        batch_size: samples per optimizer step.
        workers: loader processes.
        accept: what the task makes of labels [B, ...]; None: floating-point ones are float32.
    """

    train: GivenSamples
    test: GivenSamples
    num_classes: int
    batch_size: int
    workers: int = 0
    accept: Callable[[Tensor], Tensor] | None = None

    def describe(self) -> DataInfo:
        """As `RunData.describe`; refuses a batch that cannot be filled."""
        if self.batch_size > len(self.train.samples):
            raise UserError(
                f"data.batch_size: must not exceed the {len(self.train.samples)} training samples,"
                f" got {self.batch_size}; lower it"
            )
        form = self.train.form
        return DataInfo(
            num_train=len(self.train.samples),
            num_test=len(self.test.samples),
            num_classes=self.num_classes,
            sample_shape=form.x_shape,
            mean=(),
            std=(),
            classes=(),
            label_shape=form.y_shape,
            dtype=str(form.x_dtype).removeprefix("torch."),
        )

    def train_batches(
        self,
        info: DataInfo,
        seed: int,
        start: int,
        steps: int,
        skipped: Skipped,
        share: Share = WHOLE,
    ) -> Iterator[Batch]:
        """As `RunData.train_batches`."""
        size, workers = self.batch_size, self.workers
        loaded = given_batches.train_batches(self.train, size, seed, start, steps, workers, share)
        return self._accepted(loaded)

    def test_batches(
        self, info: DataInfo, skipped: Skipped, share: Share = WHOLE
    ) -> Iterator[Batch]:
        """As `RunData.test_batches`."""
        loaded = given_batches.test_batches(self.test, self.batch_size, self.workers, share)
        return self._accepted(loaded)

    def ready(
        self, info: DataInfo, dtype: torch.dtype, device: torch.device
    ) -> Callable[[Tensor], Tensor]:
        """As `RunData.ready`."""
        return lambda x: x.to(dtype) if x.is_floating_point() else x

    def check_again(self, info: DataInfo, split: Split) -> DataInfo:
        """The same facts: `fit` has checked what a program hands in."""
        return info

    def passed_over(self) -> list[str]:
        """Nothing."""
        return []

    def _accepted(self, loaded: Iterator[Batch]) -> Iterator[Batch]:
        accept = self.accept or _narrow
        return ((x, accept(y)) for x, y in loaded)


def _narrow(labels: Tensor) -> Tensor:
    return labels.float() if labels.is_floating_point() else labels


def describe(data: DataConfig) -> DataInfo:
    """The facts of the configured data.

    Raises:
        UserError: it is missing, inconsistent, or too small for one batch.
    """
    return open_data(data).describe()


def check_again(data: DataConfig, info: DataInfo, split: Split) -> DataInfo:
    """The facts of a run, with the size that one split of its data has now.

    Raises:
        UserError: it is not there, or not the data that the run was trained on.
    """
    return open_data(data).check_again(info, split)


def passed_over(data: DataConfig) -> list[str]:
    """What lies with the data and is not read, in a line or two; none where nothing does."""
    return open_data(data).passed_over()


DATA.add("tokens", tokens.ENTRY)
DATA.add("synthetic_tokens", synthetic_tokens.ENTRY)


def open_data(data: DataConfig) -> RunData:
    """The configured data."""
    own = getattr(DATA.find(data.name), "run_data", None)  # of an entry that reads no images
    return own(data) if own else Images(data)
