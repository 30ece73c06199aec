import shutil

import numpy as np
import pytest
import torch
from PIL import Image

from pipeline_local.data.images.imagefolder import open_imagefolder, read_image
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


@pytest.mark.parametrize("name", ["x.png", "x.bmp", "x.webp"])
def test_lossless_formats_give_the_very_pixels(tmp_path, name):
    pixels = np.random.default_rng(0).integers(0, 256, (4, 6, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / name, lossless=True)
    assert torch.equal(read_image(str(tmp_path / name)), torch.from_numpy(pixels).permute(2, 0, 1))


@pytest.mark.parametrize(
    ("name", "mode"), [("g.png", "L"), ("a.png", "RGBA"), ("p.png", "P"), ("c.jpg", "CMYK")]
)
def test_other_colour_modes_become_rgb(tmp_path, write_image, name, mode):
    write_image(tmp_path / name, 5, 7, mode)
    with Image.open(tmp_path / name) as image:
        assert image.mode == mode
        expected = torch.from_numpy(np.array(image.convert("RGB"))).permute(2, 0, 1)
    assert torch.equal(read_image(str(tmp_path / name)), expected)


def test_sixteen_bits_become_eight(tmp_path):
    levels = np.arange(256, dtype=np.uint16).reshape(16, 16)
    Image.fromarray(levels * 257).save(tmp_path / "x.png")
    image = read_image(str(tmp_path / "x.png"))
    assert torch.equal(image[0], torch.from_numpy(levels).byte())


@pytest.mark.parametrize("content", [b"", b"no image", None], ids=["empty", "text", "truncated"])
@pytest.mark.parametrize("name", ["x.jpg", "x.png"])
def test_an_unreadable_image_is_named(tmp_path, write_image, name, content):
    path = tmp_path / name
    write_image(path, 20, 20)
    path.write_bytes(path.read_bytes()[:300] if content is None else content)
    with pytest.raises(UserError, match=f"{name}.*; repair or remove it") as info:
        read_image(str(path))
    assert "\n" not in str(info.value)


def test_a_lost_image_is_named(tmp_path):
    with pytest.raises(UserError, match=r"gone\.jpg.*No such file"):
        read_image(str(tmp_path / "gone.jpg"))


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
