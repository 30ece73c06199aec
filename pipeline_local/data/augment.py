"""Augmentation: a pure function of (seed, epoch, sample), whoever computes it and when."""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional
from torchvision.transforms import v2

from pipeline_local import seeds
from pipeline_local.config import DataConfig
from pipeline_local.data.datasets import SMALL

Transform = Callable[[Tensor], Tensor]


class Augment:
    """uint8 image [C, H, W] -> uint8 image [C, size, size].

    Args:
        data: `augment` says what is done.
        size: side of the result.
        seed: of the run.
    """

    def __init__(self, data: DataConfig, size: int, seed: int) -> None:
        self._seed = seed
        self._transform = _transform(data, size)

    def __call__(self, image: Tensor, epoch: int, index: int) -> Tensor:
        """The image as it looks in this epoch. Seeds the global generator."""
        if self._transform is None:
            return image
        # the CPU's generator alone: torch.manual_seed visits every device, at 20 times the cost
        torch.default_generator.manual_seed(seeds.derive(self._seed, "augment", epoch, index))
        return self._transform(image)


def _transform(data: DataConfig, size: int) -> Transform | None:
    if data.augment == "none":
        return None
    standard = PadCropFlip(size) if size <= SMALL else _resized_crop(size)
    if data.augment == "standard":
        return standard
    trivial = v2.TrivialAugmentWide()
    return lambda image: trivial(standard(image))


def _resized_crop(size: int) -> Transform:
    transforms = [v2.RandomResizedCrop(size, antialias=True), v2.RandomHorizontalFlip()]
    return v2.Compose(transforms)  # type: ignore[no-any-return]


class PadCropFlip:
    """Zero-pad by an eighth, crop anywhere, flip every other image.

    As v2.RandomCrop and v2.RandomHorizontalFlip, at a tenth of their cost on small images.
    """

    def __init__(self, size: int) -> None:
        self._size = size
        self._padding = size // 8

    def __call__(self, image: Tensor) -> Tensor:
        """One draw of three numbers from the global generator."""
        top, left, flip = torch.randint(0, 2 * (2 * self._padding + 1), (3,)).tolist()
        top, left = top // 2, left // 2
        padded = functional.pad(image, [self._padding] * 4)
        crop = padded[:, top : top + self._size, left : left + self._size]
        return crop.flip(-1) if flip % 2 else crop
