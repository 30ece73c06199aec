import io

import numpy as np
import pytest
import torch
from PIL import Image

from pipeline_local.data.images.decode import read_image
from pipeline_local.errors import UserError


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


def test_sixteen_bits_become_eight_in_every_format(tmp_path):
    levels = np.arange(256, dtype=np.uint16).reshape(16, 16)
    Image.fromarray(levels * 257).save(tmp_path / "x.tif")
    (tmp_path / "x.pgm").write_bytes(b"P5 16 16 65535\n" + (levels * 257).astype(">u2").tobytes())
    for name in ("x.tif", "x.pgm"):
        assert torch.equal(read_image(str(tmp_path / name))[2], torch.from_numpy(levels).byte())


@pytest.mark.parametrize("dtype", [np.float32, np.int32])
def test_pixels_of_unknown_range_are_refused(tmp_path, dtype):
    Image.fromarray(np.ones((3, 3), dtype)).save(tmp_path / "x.tif")
    with pytest.raises(UserError, match=r"x\.tif \(pixels of 32 bits, mode [FI]; store 8 or 16\)"):
        read_image(str(tmp_path / "x.tif"))


@pytest.mark.parametrize("name", ["x.gif", "x.tif", "x.webp", "x.png"])
def test_the_first_of_several_pictures_counts(tmp_path, name):
    red, blue = (Image.new("RGB", (4, 3), colour) for colour in ("red", "blue"))
    settings = {"lossless": True} if "webp" in name else {}
    red.save(tmp_path / name, save_all=True, append_images=[blue], **settings)
    image = read_image(str(tmp_path / name))
    assert image[:, 0, 0].tolist() == [255, 0, 0]
    assert image.shape == (3, 3, 4)


def test_a_picture_is_not_turned_as_exif_asks(tmp_path):
    """As torchvision reads it: what is stored in rows stays in rows."""
    exif = Image.Exif()
    exif[0x0112] = 6  # a quarter turn
    Image.new("RGB", (6, 4), "red").save(tmp_path / "x.jpg", exif=exif)
    assert read_image(str(tmp_path / "x.jpg")).shape == (3, 4, 6)


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


def test_an_open_file_gives_the_same_pixels(tmp_path, write_image):
    path = tmp_path / "x.png"
    write_image(path, 5, 7)
    file = io.BytesIO(path.read_bytes())
    path.unlink()
    assert read_image("shard.tar/x.png", file).shape == (3, 5, 7)
    with pytest.raises(UserError, match=r"got shard\.tar/x\.png"):
        read_image("shard.tar/x.png", io.BytesIO(b""))
