"""TrivialAugmentWide (Müller and Hutter 2021): one operation of random strength per image.

torchvision has it too, but draws from torch's global generator; here the draw is an argument.
"""

import math
from collections.abc import Callable
from random import Random
from typing import Any

from torch import Tensor
from torchvision.transforms.v2 import functional as F

NUM_STRENGTHS = 31


def trivial_augment(image: Tensor, draw: Random) -> Tensor:
    """Apply one of `OPERATIONS` to a uint8 image [C, H, W] with one or three channels."""
    operation = draw.choice(OPERATIONS)
    strength = draw.randrange(NUM_STRENGTHS) / (NUM_STRENGTHS - 1)
    return operation(image, strength * draw.choice((-1, 1)))


def _affine(image: Tensor, **change: Any) -> Tensor:  # noqa: ANN401
    still = {"angle": 0.0, "translate": [0, 0], "scale": 1.0, "shear": [0.0, 0.0]}
    moved: Tensor = F.affine(image, **{**still, **change})
    return moved


def _shear(image: Tensor, along_x: float, along_y: float) -> Tensor:
    degrees = [math.degrees(math.atan(along_x)), math.degrees(math.atan(along_y))]
    return _affine(image, shear=degrees, center=[0, 0])


def _contrast(image: Tensor, factor: float) -> Tensor:
    """As torchvision's, but its mean could round differently with another number of threads."""
    mean: Tensor = F.rgb_to_grayscale(image).double().mean().float()
    return (image * factor + mean * (1 - factor)).clamp(0, 255).to(image.dtype)


# Each takes a strength in [-1, 1]; those without a direction look at its size alone.
OPERATIONS: tuple[Callable[[Tensor, float], Tensor], ...] = (
    lambda image, s: image,
    lambda image, s: _shear(image, 0.99 * s, 0.0),
    lambda image, s: _shear(image, 0.0, 0.99 * s),
    lambda image, s: _affine(image, translate=[int(32 * s), 0]),
    lambda image, s: _affine(image, translate=[0, int(32 * s)]),
    lambda image, s: F.rotate(image, 135 * s),
    lambda image, s: F.adjust_brightness(image, 1 + 0.99 * s),
    lambda image, s: F.adjust_saturation(image, 1 + 0.99 * s),
    lambda image, s: _contrast(image, 1 + 0.99 * s),
    lambda image, s: F.adjust_sharpness(image, 1 + 0.99 * s),
    lambda image, s: F.posterize(image, round(8 - 6 * abs(s))),
    lambda image, s: F.solarize(image, 255 * (1 - abs(s))),
    lambda image, s: F.autocontrast(image),
    lambda image, s: F.equalize(image),
)
