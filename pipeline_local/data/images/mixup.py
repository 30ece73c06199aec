"""Mixup (Zhang et al. 2018): every sample is blended with another one of its batch."""

from random import Random

import torch
from torch import Tensor
from torch.nn.functional import one_hot

from pipeline_local.seeds import derive, generator


def mixup(
    images: Tensor, labels: Tensor, num_classes: int, alpha: float, seed: int, step: int
) -> tuple[Tensor, Tensor]:
    """Blend a batch by one weight ~ Beta(alpha, alpha), a pure function of (seed, step).

    Args:
        images: uint8 [B, C, H, W].
        labels: int64 [B].

    Returns:
        float32 images [B, C, H, W], still in [0, 255], and float32 targets [B, num_classes].
        Normalising is affine, so normalising the blend is blending the normalised.
    """
    weight = Random(derive(seed, "mixup", "weight", step)).betavariate(alpha, alpha)
    partner = torch.randperm(len(images), generator=generator(seed, "mixup", "partner", step))
    pixels, targets = images.float(), one_hot(labels, num_classes).float()
    return _blend(pixels, partner, weight), _blend(targets, partner, weight)


def _blend(values: Tensor, partner: Tensor, weight: float) -> Tensor:
    return weight * values + (1 - weight) * values[partner]
