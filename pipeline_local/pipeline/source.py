"""The upstream edge of the first module: batches of the data, in the order of the run plan."""

from collections.abc import Generator, Iterable

import torch
from torch import Tensor

from pipeline_local.blueprint.run_plan import Action, Evaluate
from pipeline_local.config import Config
from pipeline_local.data.datasets import open_data
from pipeline_local.data.info import DataInfo
from pipeline_local.data.share import Share
from pipeline_local.data.skipped import Skipped
from pipeline_local.learning.step import Step


class Source:
    """Gives the same messages as a channel, except that a signal is empty: data has no gradient.

    Args:
        config: the configuration of the run.
        info: the facts about the data.
        actions: the actions of the run plan, in order.
        steps: the numbers of the optimizer steps among them.
        device: the device of the first module.
        dtype: the dtype of the normalised images.
        skipped: collects the images that are skipped, if given.
        share: the microbatches of each batch that this rank learns from.
    """

    waited = 0.0
    """The seconds spent waiting for a neighbour: none, as loading is the first stage's own work."""

    def __init__(
        self,
        config: Config,
        info: DataInfo,
        actions: Iterable[Action],
        steps: range,
        device: torch.device,
        dtype: torch.dtype,
        skipped: Skipped | None = None,
        share: Share | None = None,
    ) -> None:
        parts = config.train.microbatches
        self._share = share or Share(parts, tuple(range(parts)))
        self._skipped = skipped or Skipped()
        self._config = config
        self._info = info
        self._device = device
        self._data = open_data(config.data)
        self._ready_input = self._data.ready(info, dtype, device)
        self._messages = self._run(actions, steps)

    def recv(self) -> tuple[Tensor, ...]:
        """Returns images [B, C, H, W] with labels, or an empty signal."""
        return next(self._messages)

    def send_lagged(self, *tensors: Tensor) -> None:
        """Raises AssertionError, as the first module sends no lagged messages."""
        raise AssertionError("no module is upstream of the first one")

    def finish(self) -> None:
        """Returns at once, as nothing is under way."""

    def close(self) -> None:
        """Ends the loader's workers."""
        self._messages.close()

    def _run(self, actions: Iterable[Action], steps: range) -> Generator[tuple[Tensor, ...]]:
        data, info, skipped = self._data, self._info, self._skipped
        seed = self._config.train.seed
        batches = data.train_batches(info, seed, steps.start, len(steps), skipped, self._share)
        for action in actions:
            if isinstance(action, Step):
                images, labels = next(batches)
                for part in self._parts(images, labels):
                    yield part
                    if action.compare:
                        yield ()
            elif isinstance(action, Evaluate):
                for images, labels in data.test_batches(info, skipped, self._share):
                    yield from self._parts(images, labels)

    def _parts(self, images: Tensor, labels: Tensor) -> Generator[tuple[Tensor, Tensor]]:
        count = len(self._share.own)
        for x, y in zip(images.chunk(count), labels.chunk(count), strict=True):
            yield self._ready(x, y)

    def _ready(self, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        images = images.to(self._device, non_blocking=True)
        return self._ready_input(images), labels.to(self._device, non_blocking=True)
