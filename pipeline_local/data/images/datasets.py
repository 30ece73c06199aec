"""Which data a run uses: facts that every rank needs, and the splits that the first one reads."""

import json
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal, NamedTuple

from pipeline_local.config import DataConfig
from pipeline_local.data.images.arrays import open_cifar, open_digits
from pipeline_local.data.images.imagefolder import open_imagefolder
from pipeline_local.data.images.subset import Dataset as Dataset  # public here too
from pipeline_local.data.images.subset import balanced_subset
from pipeline_local.data.images.synthetic import SyntheticDataset
from pipeline_local.errors import UserError

Split = Literal["train", "test"]


@dataclass(frozen=True)
class DataInfo:
    """What every rank must know of the data; only the first stage ever reads the data itself."""

    num_train: int
    num_test: int
    num_classes: int
    image_shape: tuple[int, int, int]
    """C, H, W of the images in a batch."""
    mean: tuple[float, ...]
    """Per channel, of pixels in [0, 1]."""
    std: tuple[float, ...]
    classes: tuple[str, ...]
    """The name of each label."""

    def to_json(self) -> str:
        """One line, read back by `from_json`."""
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> "DataInfo":
        """The inverse of `to_json`.

        Raises:
            UserError: it was not written by that.
        """
        try:
            items = json.loads(text).items()
            facts: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in items}
            return cls(**facts)
        except (ValueError, TypeError, AttributeError):
            raise UserError(
                f"the facts of the data are damaged: got {text[:60]!r}; restore data.json, or"
                f" resume the run, which writes it again"
            ) from None


class _Pixels(NamedTuple):
    """The size of the stored images and the statistics by which they are normalised."""

    size: int
    mean: tuple[float, ...]
    std: tuple[float, ...]


_PIXELS = {
    "digits": _Pixels(8, (0.305,), (0.376,)),
    "cifar10": _Pixels(32, (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)),
    "cifar100": _Pixels(32, (0.5071, 0.4865, 0.4409), (0.2673, 0.2564, 0.2762)),
    "imagefolder": _Pixels(224, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),  # ImageNet's
    "synthetic": _Pixels(32, (0.5, 0.5, 0.5), (0.2, 0.2, 0.2)),
}


def describe(data: DataConfig) -> DataInfo:
    """Open both splits, without reading the images of a folder, and tell what they hold.

    Raises:
        UserError: the data is missing, inconsistent, or too small for one batch.
    """
    train, test = open_split(data, "train"), open_split(data, "test")
    if data.batch_size > len(train):
        remedy = "lower it" if data.limit is None else "lower it or raise data.limit"
        raise UserError(
            f"data.batch_size must not exceed the {len(train)} training samples: "
            f"got {data.batch_size}; {remedy}"
        )
    size, mean, std = _PIXELS[data.name]
    side = data.image_size or size
    shape = (len(mean), side, side)
    num_classes = len(train.classes)
    return DataInfo(len(train), len(test), num_classes, shape, mean, std, train.classes)


# Every evaluation opens the test split again: it stays in memory.
@lru_cache(maxsize=2)
def open_split(data: DataConfig, split: Split) -> Dataset:
    """One split with `data.limit` applied, its images as stored.

    Raises:
        UserError: the data is missing or inconsistent.
    """
    whole = _open_whole(data, split)
    return whole if data.limit is None else balanced_subset(whole, data.limit)


def _open_whole(data: DataConfig, split: Split) -> Dataset:
    if data.name == "digits":
        return open_digits(split)
    if data.name == "synthetic":
        return SyntheticDataset(split, data.image_size or _PIXELS[data.name].size)
    if data.name == "imagefolder":
        return open_imagefolder(_root(data), split)
    return open_cifar(data.name, _root(data), split)


def _root(data: DataConfig) -> Path:
    if data.root is None:
        raise UserError(f"data.name={data.name} needs data.root: got none; name the data's folder")
    return data.root
