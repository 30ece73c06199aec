"""The first module's upstream: batches of the data, in the order the run plan asks for them."""

from collections.abc import Generator, Iterable

import torch
from torch import Tensor

from pipeline_local.blueprint.run_plan import Action, Evaluate
from pipeline_local.config import Config
from pipeline_local.data.datasets import DataInfo, open_data
from pipeline_local.data.images.skipping import Skipped
from pipeline_local.learning.step import Step


class Source:
    """Messages like any channel's, except that a signal is empty: data has no gradient.

    Args:
        config: of the run.
        info: facts of the data.
        actions: what will be done, in order.
        steps: numbers of the optimizer steps among them.
        device: where the first module runs.
        dtype: of the normalised images.
        skipped: gets the images that are passed over, if given.
    """

    waited = 0.0
    """Loading is the first stage's own work, not a wait for a neighbour."""

    def __init__(
        self,
        config: Config,
        info: DataInfo,
        actions: Iterable[Action],
        steps: range,
        device: torch.device,
        dtype: torch.dtype,
        skipped: Skipped | None = None,
    ) -> None:
        self._skipped = skipped or Skipped()
        self._config = config
        self._info = info
        self._device = device
        self._data = open_data(config.data)
        self._ready_input = self._data.ready(info, dtype, device)
        self._messages = self._run(actions, steps)

    def recv(self) -> tuple[Tensor, ...]:
        """Images [B, C, H, W] with labels, or an empty signal."""
        return next(self._messages)

    def send_lagged(self, *tensors: Tensor) -> None:
        """Data learns nothing; the first module sends it nothing."""
        raise AssertionError("nobody is upstream of the first module")

    def finish(self) -> None:
        """Nothing is under way."""

    def close(self) -> None:
        """End the loader's workers."""
        self._messages.close()

    def _run(self, actions: Iterable[Action], steps: range) -> Generator[tuple[Tensor, ...]]:
        data, info, skipped = self._data, self._info, self._skipped
        seed = self._config.train.seed
        batches = data.train_batches(info, seed, steps.start, len(steps), skipped)
        for action in actions:
            if isinstance(action, Step):
                images, labels = next(batches)
                yield from self._parts(images, labels, action)
            elif isinstance(action, Evaluate):
                for images, labels in data.test_batches(info, skipped):
                    yield self._ready(images, labels)

    def _parts(self, images: Tensor, labels: Tensor, step: Step) -> Generator[tuple[Tensor, ...]]:
        count = step.microbatches
        for x, y in zip(images.chunk(count), labels.chunk(count), strict=True):
            yield self._ready(x, y)
            if step.compare:
                yield ()

    def _ready(self, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        images = images.to(self._device, non_blocking=True)
        return self._ready_input(images), labels.to(self._device, non_blocking=True)
