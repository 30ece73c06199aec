"""Batches: the same for any number of workers and any starting point; padding; mixup."""

import pytest
import torch
from PIL import Image

from pipeline_local.config import DataConfig
from pipeline_local.data.batches import IGNORE, evaluation_batches, normalize, train_batches
from pipeline_local.data.datasets import DataInfo, describe
from pipeline_local.errors import UserError
from pipeline_local.learning import module


def data(**keys):
    return DataConfig(
        **{"name": "synthetic", "batch_size": 8, "limit": 30, "image_size": 8, **keys}
    )


def collect(config, seed=0, start=0, steps=6):
    return list(train_batches(config, describe(config), seed, start, steps))


def equal(a, b):
    return all(
        torch.equal(x, y) for p, q in zip(a, b, strict=True) for x, y in zip(p, q, strict=True)
    )


@pytest.mark.parametrize("mixup", [0.0, 0.5])
def test_workers_never_change_a_batch(mixup):
    config = {"augment": "trivial", "mixup": mixup}
    alone = collect(data(**config))
    for workers in (1, 2):
        assert equal(alone, collect(data(**config, workers=workers)))


def test_resuming_gives_the_same_batches():
    config = data(augment="standard", mixup=0.2)
    assert equal(collect(config)[4:], collect(config, start=4, steps=2))


def test_the_callers_generator_is_left_alone():
    torch.manual_seed(1)
    expected = torch.rand(2)
    torch.manual_seed(1)
    collect(data(augment="standard", mixup=0.2))
    assert torch.equal(torch.rand(2), expected)


def test_epochs_are_shuffled_anew():
    first = [labels.tolist() for _, labels in collect(data())]
    assert first[:3] != first[3:]
    assert [labels.tolist() for _, labels in collect(data(), seed=1)] != first


def test_the_last_test_batch_is_padded():
    config = data(limit=30)
    batches = list(evaluation_batches(config, describe(config)))
    assert [images.shape[0] for images, _ in batches] == [8, 8, 8, 8]
    labels = torch.cat([labels for _, labels in batches])
    assert labels[30:].tolist() == [IGNORE, IGNORE]
    assert (labels[:30] >= 0).all()
    assert IGNORE == module.IGNORE


def test_mixup():
    config = data(mixup=1.0)
    hard, soft = collect(data()), collect(config)
    shares = []
    for (images, labels), (mixed, targets) in zip(hard, soft, strict=True):
        one_hot = torch.nn.functional.one_hot(labels, 10).float()
        torch.testing.assert_close(targets.sum(1), torch.ones(8))
        differs = labels != labels.roll(1)
        share = targets[differs][0, labels[differs][0]]
        expected = share * images + (1 - share) * images.roll(1, 0)
        torch.testing.assert_close(mixed, expected, atol=1e-3, rtol=1e-4)
        torch.testing.assert_close(targets, share * one_hot + (1 - share) * one_hot.roll(1, 0))
        shares.append(share.item())
    assert len(set(shares)) == len(shares)


def test_normalize():
    info = DataInfo(1, 1, 10, (2, 1, 1), (0.5, 0.0), (0.25, 1.0))
    images = torch.tensor([255, 51], dtype=torch.uint8).reshape(1, 2, 1, 1)
    result = normalize(images, info, torch.float64)
    assert result.dtype == torch.float64
    torch.testing.assert_close(result.flatten(), torch.tensor([2.0, 0.2], dtype=torch.float64))


@pytest.mark.parametrize("workers", [0, 1])
def test_a_damaged_image_is_named_from_a_worker_too(tmp_path, workers):
    for split in ("train", "test"):
        (tmp_path / split / "a").mkdir(parents=True)
        for i in range(4):
            Image.new("RGB", (8, 8)).save(tmp_path / split / "a" / f"{i}.png")
    (tmp_path / "train" / "a" / "2.png").write_bytes(b"broken")
    config = data(name="imagefolder", root=tmp_path, batch_size=4, limit=None, workers=workers)
    with pytest.raises(UserError, match=r"2\.png cannot be decoded"):
        collect(config, steps=1)
