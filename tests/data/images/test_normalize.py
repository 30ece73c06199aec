import dataclasses

import pytest
import torch

from pipeline_local.config import DataConfig
from pipeline_local.data.images.datasets import describe, open_split
from pipeline_local.data.images.mixup import mixup
from pipeline_local.data.images.normalize import Normalize

INFO = describe(DataConfig("synthetic", batch_size=8, image_size=8))


def batch(size=64):
    train = open_split(DataConfig("synthetic", image_size=8), "train")
    return torch.stack([train[i][0] for i in range(size)]), train.labels[:size]


def test_each_channel_gets_mean_zero_and_deviation_one():
    images, _ = batch()
    pixels = images.double() / 255
    mean, std = (tuple(f(pixels, (0, 2, 3)).tolist()) for f in (torch.mean, torch.std))
    result = Normalize(dataclasses.replace(INFO, mean=mean, std=std), torch.float64)(images)
    assert result.dtype == torch.float64
    torch.testing.assert_close(result.mean((0, 2, 3)), torch.zeros(3, dtype=torch.float64))
    torch.testing.assert_close(result.std((0, 2, 3)), torch.ones(3, dtype=torch.float64))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_lower_precision_is_only_rounded_at_the_end(dtype):
    images, _ = batch(4)
    exact = Normalize(INFO, torch.float64)(images)
    result = Normalize(INFO, dtype)(images)
    assert result.dtype == dtype
    tolerance = torch.finfo(dtype).eps
    torch.testing.assert_close(result.double(), exact, rtol=tolerance, atol=1e-6)


def test_normalising_a_mixup_is_mixing_up_the_normalised():
    images, labels = batch(8)
    mixed, targets = mixup(images, labels, 10, 1.0, 0, 0)
    before = mixed.clone()
    normalize = Normalize(INFO)
    blended = torch.einsum("bc,c...->b...", targets[:, :8], normalize(images))
    torch.testing.assert_close(normalize(mixed), blended, rtol=1e-4, atol=1e-5)
    assert torch.equal(mixed, before)
