"""A small folder of images, as a user would have one."""

from pathlib import Path

import pytest
import torch
from PIL import Image

from pipeline_local.seeds import generator

FILES = {
    "train/ant": ["a.jpg", "b.JPEG", "c.png", "d.bmp", "e.webp"],
    "train/bee": ["f.jpg", "g.PNG", "h.Jpg", "i.jpeg"],
    "test/ant": ["j.png", "k.png"],
    "test/bee": ["l.png"],
}


def save_random_image(path: Path, height: int, width: int, mode: str = "RGB") -> None:
    """Random pixels, the same for the same file name."""
    path.parent.mkdir(parents=True, exist_ok=True)
    draw = generator(0, path.name)
    pixels = torch.randint(0, 256, (height, width, 3), dtype=torch.uint8, generator=draw)
    Image.fromarray(pixels.numpy()).convert(mode).save(path)


@pytest.fixture
def write_image():
    return save_random_image


@pytest.fixture
def image_root(tmp_path):
    """Nine training and three test images of 12x10 pixels in two classes."""
    for folder, names in FILES.items():
        for name in names:
            save_random_image(tmp_path / folder / name, 12, 10)
    return tmp_path
