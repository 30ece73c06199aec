"""Pixels to what a network expects: mean 0 and deviation 1 per channel."""

import torch
from torch import Tensor

from pipeline_local.data.info import DataInfo


class Normalize:
    """Normalise batches where they are; the constants are copied to the device only once.

    Args:
        dtype: of the result; the arithmetic is at least float32.
    """

    def __init__(
        self,
        info: DataInfo,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
    ) -> None:
        self._dtype = dtype
        self._wide = torch.promote_types(dtype, torch.float32)
        constants = torch.tensor([info.mean, info.std], dtype=torch.float64) * 255
        self._mean: Tensor
        self._std: Tensor
        self._mean, self._std = constants.to(device, self._wide).view(2, -1, 1, 1)

    def __call__(self, images: Tensor) -> Tensor:
        """Images [B, C, H, W] with values in [0, 255], uint8 or (after mixup) float32."""
        return ((images.to(self._wide) - self._mean) / self._std).to(self._dtype)
