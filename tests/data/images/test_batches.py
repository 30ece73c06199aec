import dataclasses
import multiprocessing
import os
from pathlib import Path

import pytest
import torch

from pipeline_local.config import DataConfig
from pipeline_local.data.images import batches
from pipeline_local.data.images.datasets import describe, open_split
from pipeline_local.data.images.normalize import Normalize
from pipeline_local.errors import UserError
from pipeline_local.layout import IGNORE_LABEL
from tests.data.images import test_parquet, test_webdataset

# On a machine with one core.
pytestmark = pytest.mark.filterwarnings("ignore:This DataLoader will create")

SMALL = DataConfig("synthetic", batch_size=16, image_size=8, augment="trivial", limit=100)


def load(data, start_step, num_steps, seed=0):
    return list(batches.train_batches(data, describe(data), seed, start_step, num_steps))


def assert_same(left, right):
    assert len(left) == len(right)
    for pair in zip(left, right, strict=True):
        for one, other in zip(*pair, strict=True):
            assert one.dtype == other.dtype
            assert torch.equal(one, other)


def test_batches_are_uint8_images_with_int64_labels():
    ((images, labels),) = load(SMALL, 0, 1)
    assert (images.dtype, images.shape) == (torch.uint8, (16, 3, 8, 8))
    assert (labels.dtype, labels.shape) == (torch.int64, (16,))


def test_without_augmentation_an_epoch_is_the_stored_images():
    data = dataclasses.replace(SMALL, augment="none", batch_size=20)
    epoch = load(data, 5, 5)
    seen = {image.numpy().tobytes() for images, _ in epoch for image in images}
    train = open_split(data, "train")
    assert seen == {train[i][0].numpy().tobytes() for i in range(100)}
    assert torch.cat([labels for _, labels in epoch]).bincount().tolist() == [10] * 10


def test_augmented_batches_are_contiguous():
    assert all(images.is_contiguous() for images, _ in load(SMALL, 0, 30))


def test_no_steps_are_no_batches():
    assert load(dataclasses.replace(SMALL, workers=2), 0, 0) == []


@pytest.mark.parametrize("kind", [test_webdataset, test_parquet])
def test_batches_depend_on_nothing_but_the_step(kind, tmp_path, monkeypatch):
    """Not on loader processes, nor on where the run was resumed."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    kind.fill(tmp_path)
    data = kind.settings(tmp_path)
    whole = load(data, 0, 8)
    assert_same(load(dataclasses.replace(data, workers=2), 0, 8), whole)
    assert_same(load(data, 3, 5), whole[3:])


def test_resuming_gives_what_would_have_come():
    whole = load(SMALL, 0, 14)
    assert_same(load(SMALL, 4, 10), whole[4:])
    assert not torch.equal(whole[0][0], load(SMALL, 0, 1, seed=1)[0][0])


def test_augmentation_depends_on_epoch_and_sample_but_not_on_the_batch():
    def by_sample(batch_size, epochs):
        data = dataclasses.replace(SMALL, augment="standard", batch_size=batch_size)
        source = batches.ImageTrainSource(open_split(data, "train"), data, describe(data), 0)
        steps = [100 // batch_size * epoch for epoch in epochs]
        for step in steps:
            source.batch(step)
        return source._sample(epochs[-1], 7)[0]

    assert torch.equal(by_sample(16, [3]), by_sample(100, [0, 3]))
    epochs = {by_sample(16, [epoch]).numpy().tobytes() for epoch in range(10)}
    assert len(epochs) > 5


def test_augmented_batches_hold_the_same_images_for_any_batch_size():
    def images(batch_size):
        data = dataclasses.replace(SMALL, batch_size=batch_size)
        return torch.cat([images for images, _ in load(data, 0, 100 // batch_size)])

    assert torch.equal(images(10), images(50))


@pytest.mark.parametrize("mixup", [0.0, 0.4])
def test_loader_processes_never_change_a_batch(mixup):
    data = dataclasses.replace(SMALL, mixup=mixup)
    runs = [load(dataclasses.replace(data, workers=workers), 3, 7) for workers in (0, 1, 2)]
    assert_same(runs[1], runs[0])
    assert_same(runs[2], runs[0])


@pytest.mark.parametrize("workers", [0, 1])
def test_the_callers_generator_is_left_alone(workers):
    state = torch.get_rng_state()
    load(dataclasses.replace(SMALL, workers=workers, mixup=1.0), 0, 2)
    list(batches.test_batches(SMALL, describe(SMALL)))
    assert torch.equal(torch.get_rng_state(), state)


def test_mixup_gives_soft_targets_and_float_images():
    data = dataclasses.replace(SMALL, augment="none", mixup=1.0)
    ((plain, labels),) = load(dataclasses.replace(data, mixup=0.0), 2, 1)
    ((mixed, targets),) = load(data, 2, 1)
    assert (mixed.dtype, mixed.shape, targets.shape) == (torch.float32, plain.shape, (16, 10))
    own = targets.gather(1, labels[:, None])
    assert (own > 0).all()
    assert (Normalize(describe(data))(mixed).abs() < 5).all()


def test_the_last_test_batch_is_filled_up():
    data = DataConfig("digits", batch_size=100, limit=250)
    result = list(batches.test_batches(data, describe(data)))
    assert [images.shape for images, _ in result] == [(100, 1, 8, 8)] * 3
    labels = torch.cat([labels for _, labels in result])
    assert labels[:250].tolist() == open_split(data, "test").labels.tolist()
    assert labels[250:].tolist() == [IGNORE_LABEL] * 50
    assert result[2][0][50:].count_nonzero() == 0
    assert result[2][0][49].count_nonzero() > 0


def test_unreadable_test_images_are_not_seen_as_black(image_root):
    """Norms without running statistics would see it."""
    broken = sorted((image_root / "test").rglob("*.*"))[0]
    broken.write_bytes(b"no image")
    data = DataConfig("imagefolder", root=image_root, batch_size=2, image_size=8, on_error="skip")
    images, labels = next(iter(batches.test_batches(data, describe(data))))
    assert labels.tolist() == [IGNORE_LABEL, 0]
    assert torch.equal(images[0], images[1])


def test_the_test_split_is_not_augmented():
    data = dataclasses.replace(SMALL, mixup=1.0)
    plain = dataclasses.replace(data, augment="none", mixup=0.0)
    info = describe(data)
    assert_same(list(batches.test_batches(data, info)), list(batches.test_batches(plain, info)))


@pytest.mark.parametrize("image_size", [12, 70])
@pytest.mark.parametrize("augment", ["none", "standard"])
def test_images_of_a_folder_get_one_size(image_root, image_size, augment):
    data = DataConfig(
        "imagefolder", root=image_root, batch_size=4, image_size=image_size, augment=augment
    )
    ((images, _),) = load(data, 0, 1)
    ((tests, labels),) = batches.test_batches(data, describe(data))
    assert images.shape == tests.shape == (4, 3, image_size, image_size)
    assert images.is_contiguous()
    assert tests.is_contiguous()
    assert labels.tolist() == [0, 0, 1, IGNORE_LABEL]


@pytest.mark.parametrize("workers", [0, 1])
def test_a_corrupt_image_is_named_wherever_it_is_read(image_root, workers):
    (image_root / "train/bee/g.PNG").write_bytes(b"no image")
    data = DataConfig("imagefolder", root=image_root, batch_size=9, image_size=8, workers=workers)
    with pytest.raises(UserError, match=r"got .*train/bee/g\.PNG") as info:
        load(data, 0, 1)
    assert "\n" not in str(info.value)
    assert multiprocessing.active_children() == []


def test_loader_processes_end_with_the_iterator():
    data = dataclasses.replace(SMALL, workers=2)
    iterator = batches.train_batches(data, describe(data), 0, 0, 1000)
    next(iterator)
    assert len(multiprocessing.active_children()) == 2
    iterator.close()
    assert multiprocessing.active_children() == []


def test_real_cifar10():
    root = os.environ.get("PIPELINE_LOCAL_CIFAR10")
    if root is None:
        pytest.skip(
            "set PIPELINE_LOCAL_CIFAR10 to a folder with CIFAR-10 as train/ and test/ images"
        )
    data = DataConfig("imagefolder", root=Path(root), batch_size=64, image_size=32, limit=1000)
    info = describe(data)
    assert (info.num_train, info.num_test, info.sample_shape) == (1000, 1000, (3, 32, 32))
    assert info.classes[:2] == ("airplane", "automobile")
    images = torch.cat([images for images, _ in load(data, 0, 15)])
    normal = Normalize(dataclasses.replace(info, mean=(0.4914, 0.4822, 0.4465)))(images)
    assert normal.mean((0, 2, 3)).abs().max() < 0.1
