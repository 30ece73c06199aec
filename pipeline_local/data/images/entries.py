"""The data sets of images: each entry knows how a split is opened, and what its images are like."""

import inspect
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import NamedTuple

from pipeline_local.data.images.arrays import open_cifar, open_digits
from pipeline_local.data.images.imagefolder import open_imagefolder
from pipeline_local.data.images.parquet import open_parquet
from pipeline_local.data.images.subset import Dataset, check_image
from pipeline_local.data.images.synthetic import SIZE, SyntheticDataset
from pipeline_local.data.images.webdataset import open_webdataset
from pipeline_local.data.info import Split
from pipeline_local.data.registry import DATA
from pipeline_local.errors import UserError


class Pixels(NamedTuple):
    """The side of the stored images, and the statistics by which they are normalised."""

    size: int
    mean: tuple[float, ...]
    """Per channel, of pixels in [0, 1]."""
    std: tuple[float, ...]


@dataclass
class ImageData:
    """An entry of `DATA`: how one data set is opened, and what is known of it beforehand.

    Args:
        open: called with `root` (a path, or None), `split` (train or test) and its own options,
            all by name; gives a `Dataset`.
        pixels: size and statistics of the images.
        needs_root: whether `data.root` must be given.
        reads_root: whether it changes anything.
    """

    open: Callable[..., Dataset]
    pixels: Pixels
    needs_root: bool = True
    reads_root: bool = True
    __signature__: inspect.Signature = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        # where the function is from: a program's own is not taken for one of this package
        self.__module__ = getattr(self.open, "func", self.open).__module__
        self.__signature__ = inspect.signature(self.open, eval_str=True)

    def __call__(self, root: Path | None, split: Split, **options: object) -> Dataset:
        return self.open(root=root, split=split, **options)


IMAGENET = Pixels(224, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
_GREY = Pixels(28, (0.5,), (0.25,))


def guess_pixels(name: str, dataset: Dataset, image_size: int | None) -> Pixels:
    """Size and statistics for a data set that comes with none.

    The size is that of the first image; images with three channels are normalised as ImageNet's,
    all others by a mean of 0.5 and a deviation of 0.25.

    Raises:
        UserError: the first item is no image and label, or is not square and `image_size` is None.
    """
    image, _ = dataset[0]
    check_image(name, image)
    channels, height, width = image.shape
    if image_size is None and height != width:
        raise UserError(
            f"data.image_size is needed: {name} gives images of {height}x{width}, which are not"
            f" square; say which side they are to get"
        )
    like = IMAGENET if channels == 3 else _GREY
    repeat = 1 if channels == 3 else channels
    return Pixels(int(width), like.mean * repeat, like.std * repeat)


def _digits(root: Path | None, split: Split) -> Dataset:
    return open_digits(split)


def _synthetic(root: Path | None, split: Split, *, image_size: int | None = None) -> Dataset:
    return SyntheticDataset(split, image_size or SIZE)


_CIFAR10 = Pixels(32, (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616))
_CIFAR100 = Pixels(32, (0.5071, 0.4865, 0.4409), (0.2673, 0.2564, 0.2762))
_DIGITS, _SYNTHETIC = Pixels(8, (0.305,), (0.376,)), Pixels(SIZE, (0.5,) * 3, (0.2,) * 3)

DATA.add("digits", ImageData(_digits, _DIGITS, needs_root=False, reads_root=False))
DATA.add("synthetic", ImageData(_synthetic, _SYNTHETIC, needs_root=False, reads_root=False))
DATA.add("cifar10", ImageData(partial(open_cifar, "cifar10"), _CIFAR10))
DATA.add("cifar100", ImageData(partial(open_cifar, "cifar100"), _CIFAR100))
DATA.add("imagefolder", ImageData(open_imagefolder, IMAGENET))
DATA.add("webdataset", ImageData(open_webdataset, IMAGENET))
DATA.add("parquet", ImageData(open_parquet, IMAGENET))
