"""Images computed on the fly: a coarse pattern for each class, under noise of the same strength."""

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from pipeline_local.seeds import generator

SIZE = 32
"""Side in pixels, unless another one is asked for."""
NUM_CLASSES = 10
NUM_SAMPLES = {"train": 4096, "test": 1024}
_CHANNELS = 3
_CELLS = 4
_HALF = 128


@dataclass(frozen=True)
class SyntheticDataset:
    """Integer arithmetic only, so every machine computes the same images."""

    split: str
    size: int

    @property
    def classes(self) -> tuple[str, ...]:
        return tuple(f"pattern {label}" for label in range(NUM_CLASSES))

    @property
    def labels(self) -> Tensor:
        return torch.arange(len(self)) % NUM_CLASSES

    def __len__(self) -> int:
        return NUM_SAMPLES[self.split]

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        label = index % NUM_CLASSES
        noise = torch.empty(_CHANNELS, self.size, self.size, dtype=torch.uint8)
        noise.random_(_HALF, generator=generator(0, "synthetic", self.split, index))
        return self._patterns[label] + noise, label

    @cached_property
    def _patterns(self) -> Tensor:
        """One pattern per class [10, 3, size, size] of 4x4 cells, below 128 to leave room."""
        cells = torch.empty(NUM_CLASSES, _CHANNELS, _CELLS, _CELLS, dtype=torch.uint8)
        cells.random_(_HALF, generator=generator(0, "synthetic", "patterns"))
        nearest = torch.arange(self.size) * _CELLS // self.size
        return cells[:, :, nearest][:, :, :, nearest]
