import shutil

import pytest
import torch
from PIL import Image

from pipeline_local.config import DataConfig
from pipeline_local.data.datasets import passed_over
from pipeline_local.data.images import datasets
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


def test_what_is_no_image_is_passed_over_and_named(image_root, write_image):
    for hidden in ("train/ant/._a.jpg", "train/.cache/x.png"):
        (image_root / hidden).parent.mkdir(exist_ok=True)
        (image_root / hidden).write_bytes(b"x")
    assert open_imagefolder(image_root, "train").passed_over == ()
    (image_root / "train/ant/notes.txt").write_text("x")
    (image_root / "train/README").write_text("x")
    for name in ("train/bee/more/x.png", "train/bee/folder.png/x.png", "train/x.png"):
        write_image(image_root / name, 3, 3)
    (image_root / "test/bee/x.heic").write_bytes(b"x")
    train = open_imagefolder(image_root, "train")
    assert len(train) == 9
    assert train.passed_over == (
        "README",
        "x.png",
        "ant/notes.txt",
        "bee/folder.png/",
        "bee/more/",
    )
    assert open_imagefolder(image_root, "test").passed_over == ("bee/x.heic",)


def test_what_is_passed_over_is_said_in_one_line(image_root):
    data = DataConfig(name="imagefolder", root=image_root, limit=4)
    assert passed_over(data) == []
    (image_root / "test/ant/x.heic").write_bytes(b"x")
    datasets.open_split.cache_clear()
    said = f"1 file or folder is passed over in data.root={image_root}: test: ant/x.heic"
    assert passed_over(data) == [said]
    for i in range(9):
        (image_root / f"train/ant/{i}.txt").write_text("x")
    datasets.open_split.cache_clear()
    (line,) = passed_over(data)
    assert line.startswith("10 files and folders are passed over")
    assert line.endswith("train: ant/3.txt, train: ant/4.txt and 5 more")
    assert passed_over(DataConfig(name="digits")) == []


@pytest.mark.parametrize(
    "name", ["x.tif", "x.TIFF", "x.gif", "x.ppm", "x.pgm", "x.pbm", "x.jfif", "x.jpe"]
)
def test_other_formats_that_pillow_reads_are_images(image_root, name):
    picture = Image.new("RGB", (5, 4), (255, 255, 255))
    picture.save(image_root / "train/ant" / name, "JPEG" if ".j" in name else None)
    train = open_imagefolder(image_root, "train")
    assert len(train) == 10
    image, _ = train[train.names.index(f"ant/{name}")]
    assert torch.equal(image, torch.full((3, 4, 5), 255, dtype=torch.uint8))


def drop_class(root):
    shutil.rmtree(root / "test/bee")


def empty_class(root):
    shutil.rmtree(root / "train/bee")
    (root / "train/bee").mkdir()


def deeper(root):
    empty_class(root)
    (root / "train/bee/honey").mkdir()


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
        (empty_class, r"class folder has no images: got .*train/bee; add \.jpg"),
        (deeper, r"got .*train/bee; it holds honey/ \(is data.root one level too high\?\); add"),
        (drop_classes, "train has no class folders: got none; put images in"),
    ],
)
def test_a_folder_with_a_fault_is_refused(image_root, damage, message):
    damage(image_root)
    with pytest.raises(UserError, match=message) as info:
        open_imagefolder(image_root, "train")
    assert "\n" not in str(info.value)
