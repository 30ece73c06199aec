"""Data sets that fit in memory as one array: digits and CIFAR."""

import gzip
import importlib.util
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pipeline_local.data.images.subset import rank_in_class
from pipeline_local.errors import UserError


@dataclass(frozen=True)
class ArrayDataset:
    """Images [N, C, H, W] (uint8) with labels [N] (int64)."""

    images: Tensor
    labels: Tensor
    classes: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return self.images[index], int(self.labels[index])


def open_digits(split: str) -> ArrayDataset:
    """scikit-learn's 1797 handwritten digits, 8x8 in one channel.

    Every fifth sample of each class is the test split, so both splits know every writer.
    """
    stored = torch.from_numpy(_stored_digits())
    images = stored[:, :-1].mul(255 / 16).round().to(torch.uint8).view(-1, 1, 8, 8)
    labels = stored[:, -1].long()
    in_test = rank_in_class(labels) % 5 == 4
    mine = in_test if split == "test" else ~in_test
    return ArrayDataset(images[mine], labels[mine], tuple(str(name) for name in range(10)))


def _stored_digits() -> np.ndarray[Any, np.dtype[np.float64]]:
    """An image of 64 values from 0 to 16 and its label in each row [1797, 65].

    As `sklearn.datasets.load_digits` reads them, whose import takes seconds.
    """
    package = importlib.util.find_spec("sklearn")
    assert package is not None
    assert package.origin is not None
    file = Path(package.origin).with_name("datasets") / "data" / "digits.csv.gz"
    with gzip.open(file, "rt") as rows:
        return np.loadtxt(rows, delimiter=",")


def open_cifar(name: str, root: Path, split: str) -> ArrayDataset:
    """CIFAR-10 or CIFAR-100 as torchvision stores it: 50000 and 10000 images, 32x32 RGB.

    Raises:
        UserError: `root` does not hold the intact data.
    """
    stored = _load_cifar(name, root, split)
    images = torch.from_numpy(stored.data).permute(0, 3, 1, 2).contiguous()
    return ArrayDataset(images, torch.tensor(stored.targets), tuple(stored.classes))


def _load_cifar(name: str, root: Path, split: str) -> Any:  # noqa: ANN401 (torchvision's data set)
    from torchvision.datasets import CIFAR10, CIFAR100  # take seconds to import

    cls = {"cifar10": CIFAR10, "cifar100": CIFAR100}[name]
    try:
        with warnings.catch_warnings():
            # The files are pickles, the only ones ever read here: torchvision first compares their
            # checksums with the published ones, and refuses any other file unread. They are of an
            # old NumPy; new ones warn about how it spelt a dtype.
            warnings.simplefilter("ignore")
            return cls(root, train=split == "train", download=False)
    except OSError as error:
        raise UserError(f"data.root cannot be read: got {root} ({error}); allow it") from None
    except RuntimeError as error:
        call = f"torchvision.datasets.{cls.__name__}('{root}', download=True)"
        raise UserError(
            f"data.root has no intact {cls.__name__}: got {root}; "
            f'download it with: python -c "import torchvision; {call}"'
        ) from error
