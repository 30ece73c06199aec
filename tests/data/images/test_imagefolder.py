import shutil

import pytest
import torch

from pipeline_local.data.images.imagefolder import open_imagefolder
from pipeline_local.errors import UserError


def test_samples_are_ordered_by_class_and_name(image_root):
    train = open_imagefolder(image_root, "train")
    assert train.classes == ("ant", "bee")
    assert train.names[:3] == ["ant/a.jpg", "ant/b.JPEG", "ant/c.png"]
    assert train.labels.tolist() == [0] * 5 + [1] * 4
    image, label = train[7]
    assert (image.shape, image.dtype, label) == ((3, 12, 10), torch.uint8, 1)
    assert image.is_contiguous()


def test_val_stands_in_for_test_but_test_comes_first(image_root):
    shutil.copytree(image_root / "test", image_root / "val")
    assert open_imagefolder(image_root, "test").folder.endswith("/test")
    shutil.rmtree(image_root / "test")
    assert open_imagefolder(image_root, "test").folder.endswith("/val")


def test_what_is_no_image_is_passed_over(image_root):
    (image_root / "train/ant/notes.txt").write_text("x")
    (image_root / "train/ant/._a.jpg").write_bytes(b"x")
    (image_root / "train/.cache").mkdir()
    (image_root / "train/README").write_text("x")
    assert len(open_imagefolder(image_root, "train")) == 9


def drop_class(root):
    shutil.rmtree(root / "test/bee")


def empty_class(root):
    shutil.rmtree(root / "train/bee")
    (root / "train/bee").mkdir()


def drop_classes(root):
    for name in ("train/ant", "train/bee", "test/ant", "test/bee"):
        shutil.rmtree(root / name)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (shutil.rmtree, r"data\.root is not a folder: got .*; name one with"),
        (lambda root: shutil.rmtree(root / "train"), "no folder train/: got"),
        (lambda root: shutil.rmtree(root / "test"), "no folder test/ or val/: got"),
        (drop_class, "same class folders: got 1 in only one of them, such as 'bee'"),
        (empty_class, "class folder has no images: got .*train/bee; add"),
        (drop_classes, "train has no class folders: got none; put images in"),
    ],
)
def test_a_folder_with_a_fault_is_refused(image_root, damage, message):
    damage(image_root)
    with pytest.raises(UserError, match=message) as info:
        open_imagefolder(image_root, "train")
    assert "\n" not in str(info.value)
