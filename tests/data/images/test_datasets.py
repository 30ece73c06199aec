import dataclasses

import pytest

from pipeline_local.config import DataConfig
from pipeline_local.data.images.datasets import DataInfo, describe, open_split
from pipeline_local.errors import UserError


def test_digits_facts():
    info = describe(DataConfig("digits"))
    assert (info.num_train, info.num_test, info.num_classes) == (1442, 355, 10)
    assert info.image_shape == (1, 8, 8)
    pixels = open_split(DataConfig("digits"), "train").images / 255
    assert info.mean == pytest.approx((pixels.mean().item(),), abs=1e-3)
    assert info.std == pytest.approx((pixels.std().item(),), abs=1e-3)


def test_imagefolder_facts(image_root):
    info = describe(DataConfig("imagefolder", root=image_root, batch_size=2))
    assert (info.num_train, info.num_test, info.num_classes) == (9, 3, 2)
    assert info.image_shape == (3, 224, 224)
    assert info.classes == ("ant", "bee")


def test_image_size_is_the_side_of_every_image():
    data = DataConfig("synthetic", image_size=20)
    assert describe(data).image_shape == (3, 20, 20)
    assert open_split(data, "train")[0][0].shape == (3, 20, 20)


def test_info_survives_json():
    info = describe(DataConfig("synthetic"))
    assert DataInfo.from_json(info.to_json()) == info


def test_limit_keeps_classes_balanced_in_both_splits():
    data = DataConfig("digits", limit=400, batch_size=400)
    info = describe(data)
    assert (info.num_train, info.num_test) == (400, 355)
    assert open_split(data, "train").labels.bincount().tolist() == [40] * 10


def test_a_batch_beyond_the_training_set_is_refused():
    data = DataConfig("digits", batch_size=1443)
    with pytest.raises(UserError, match=r"exceed the 1442 training samples: got 1443; lower it$"):
        describe(data)
    limited = dataclasses.replace(data, batch_size=20, limit=10)
    with pytest.raises(UserError, match=r"got 20; lower it or raise data\.limit"):
        describe(limited)


@pytest.mark.parametrize("name", ["cifar10", "cifar100", "imagefolder"])
def test_data_on_disk_needs_a_root(name):
    with pytest.raises(UserError, match=rf"data\.name={name} needs data\.root: got none"):
        describe(DataConfig(name))
