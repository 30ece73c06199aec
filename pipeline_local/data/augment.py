"""From a stored image to one of the wanted size: plainly, or changed at random for training.

What is random is drawn from a `Random` that the caller seeds for (seed, epoch, sample). Nothing
touches torch's global generator, so neither the number of loader processes nor another thread can
change an image.
"""

import math
from random import Random
from typing import Any, Literal

from torch import Tensor
from torch.nn.functional import pad

Augment = Literal["none", "standard", "trivial"]

SMALL = 64
"""Up to this side in pixels an image is shifted; above, it is cropped and resized."""
NARROW = 8
"""From this ratio of its sides on, only a part of an image is resized."""


def _torchvision() -> Any:  # noqa: ANN401 (a module)
    """Its functions take seconds to import, and images that have their size do without."""
    from torchvision.transforms.v2 import functional

    return functional


def fit(image: Tensor, size: int) -> Tensor:
    """The centre of a uint8 image [C, H, W] as [C, size, size]; one of that size is untouched.

    The shorter side becomes `size` where that is small, else 256/224 of it, as ImageNet is tested.
    """
    if image.shape[1:] == (size, size):
        return image
    shorter = size if size <= SMALL else round(size * 256 / 224)
    if max(image.shape[1:]) > NARROW * min(image.shape[1:]):
        return _centre_of_narrow(image, shorter, size)
    resized = _torchvision().resize(image, [shorter])
    centre: Tensor = _torchvision().center_crop(resized, [size, size])
    return centre


def _centre_of_narrow(image: Tensor, shorter: int, size: int) -> Tensor:
    """The same, of a part around the centre alone, as all of it would grow without bound.

    The part begins where a pixel begins before and after resizing, so that these fall together.
    """
    side, length = sorted(image.shape[1:])
    axis = 1 + (image.shape[2] > image.shape[1])
    whole = shorter * length // side  # as `resize` rounds
    top = round((whole - size) / 2)  # as `center_crop` does
    unit = side // math.gcd(side, shorter)
    first = (top * side // shorter - 2 * side) // unit * unit
    part = _torchvision().resize(image.narrow(axis, first, 6 * side // unit * unit), [shorter])
    part = part.narrow(axis, top - first * shorter // side, size)
    centre: Tensor = part.narrow(3 - axis, round((shorter - size) / 2), size)
    return centre


def augment(image: Tensor, size: int, name: Augment, draw: Random) -> Tensor:
    """A training image [C, size, size] from a stored one [C, H, W], both uint8."""
    if name == "none":
        return fit(image, size)
    crop = shifted_crop if size <= SMALL else random_resized_crop
    image = crop(image, size, draw)
    if draw.random() < 0.5:
        image = image.flip(-1)
    if name == "standard":
        return image
    from pipeline_local.data.trivial_augment import trivial_augment  # takes seconds to import

    return trivial_augment(image, draw)


def shifted_crop(image: Tensor, size: int, draw: Random) -> Tensor:
    """Move the image by up to an eighth of its side in both directions; zeros fill the edge."""
    reach = size // 8
    padded = pad(fit(image, size), [reach] * 4)
    top, left = draw.randrange(2 * reach + 1), draw.randrange(2 * reach + 1)
    crop: Tensor = padded[:, top : top + size, left : left + size]
    return crop


def random_resized_crop(image: Tensor, size: int, draw: Random) -> Tensor:
    """A part of 8 to 100 % of the area and aspect ratio 3/4 to 4/3 (Szegedy et al. 2015).

    Where ten tries find no such part of a narrow image, its centre.
    """
    height, width = image.shape[1:]
    for _ in range(10):
        area = height * width * draw.uniform(0.08, 1)
        ratio = math.exp(draw.uniform(math.log(3 / 4), math.log(4 / 3)))
        h, w = round(math.sqrt(area / ratio)), round(math.sqrt(area * ratio))
        if 0 < h <= height and 0 < w <= width:
            top, left = draw.randrange(height - h + 1), draw.randrange(width - w + 1)
            crop: Tensor = _torchvision().resized_crop(image, top, left, h, w, [size, size])
            return crop
    return fit(image, size)
