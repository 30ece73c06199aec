"""From an encoded image to its pixels."""

from typing import IO, Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from pipeline_local.data.images.skipping import UnreadableImageError
from pipeline_local.errors import first_line


def read_image(path: str, file: IO[bytes] | None = None) -> Tensor:
    """Decode an image into RGB: uint8 [3, H, W].

    By Pillow, since torchvision is going to drop its decoders (deprecated in 0.29).

    Args:
        path: of the image, for messages; it is opened if no `file` is given.
        file: what holds the encoded image.

    Raises:
        UnreadableImageError: the image is missing, corrupt or no image.
    """
    try:
        with Image.open(file or path) as image:
            image.load()  # fails here: an older NumPy would swallow it
            return torch.from_numpy(to_rgb(image).transpose(2, 0, 1).copy())
    except Exception as error:  # a broken file makes Pillow raise nearly anything
        reason = first_line(error)
        raise UnreadableImageError(path, reason) from error


def to_rgb(image: Image.Image) -> np.ndarray[Any, np.dtype[np.uint8]]:
    """The pixels [H, W, 3] of an image of any mode; of several, the first one.

    Raises:
        ValueError: its pixels have 32 bits, so that nobody knows which value is white.
    """
    # Pillow clips what has more than 8 bits of grey instead of scaling it.
    if has_16_bits(image):
        image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
    if image.mode in ("I", "F"):
        raise ValueError(f"pixels of 32 bits, mode {image.mode}; store 8 or 16")
    return np.asarray(image if image.mode == "RGB" else image.convert("RGB"))


def has_16_bits(image: Image.Image) -> bool:
    """Whether its pixels have 16 bits of grey, which Pillow reads in several modes."""
    return image.mode.startswith("I;16") or (image.mode == "I" and image.format in ("PNG", "PPM"))
