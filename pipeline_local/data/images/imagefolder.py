"""A folder of images: `root/train/<class>/*` and `root/test/<class>/*` (or `root/val`)."""

import os
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

import torch
from torch import Tensor

from pipeline_local.data.images.decode import read_image
from pipeline_local.errors import UserError, few

_KINDS = ("jpg", "jpeg", "jpe", "jfif", "png", "webp", "bmp", "gif", "tif", "tiff", "ppm", "pgm")
EXTENSIONS = tuple(f".{kind}" for kind in (*_KINDS, "pbm", "pnm"))
"""What Pillow reads well."""


@dataclass(frozen=True)
class ImageFolder:
    """The images of one split in the order of their class and name, read when asked for."""

    folder: str
    names: list[str]
    """Paths within `folder`, `<class>/<file>`."""
    labels: Tensor
    classes: tuple[str, ...]
    passed_over: tuple[str, ...] = ()
    """Paths within `folder` of what is not read: other files, and folders in a class folder."""

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return read_image(f"{self.folder}/{self.names[index]}"), int(self.labels[index])


def open_imagefolder(root: Path, split: str) -> ImageFolder:
    """Scan one split; a name that starts with a dot is passed over, and not even counted.

    Raises:
        UserError: no such folder, classes that differ between the splits, a class without images.
    """
    try:
        if not root.is_dir():
            raise UserError(
                f"data.root is not a folder: got {root}; name one with train/ and test/"
            )
        return _scan(root, split)
    except OSError as error:
        raise UserError(f"data.root cannot be read: got {root} ({error}); allow it") from None


def _scan(root: Path, split: str) -> ImageFolder:
    train, test = _split_folder(root, "train"), _split_folder(root, "test", "val")
    classes = _common_classes(train, test)
    folder = train if split == "train" else test
    files, others = zip(*(_class_files(folder, name) for name in classes), strict=True)
    beside = sorted(entry.name for entry in _entries(folder) if entry.name not in classes)
    names = [
        f"{name}/{file}" for name, inside in zip(classes, files, strict=True) for file in inside
    ]
    counts = torch.tensor([len(inside) for inside in files])
    labels = torch.arange(len(classes)).repeat_interleave(counts)
    return ImageFolder(str(folder), names, labels, classes, (*beside, *chain(*others)))


def _split_folder(root: Path, *names: str) -> Path:
    for name in names:
        if (root / name).is_dir():
            return root / name
    wanted = " or ".join(f"{name}/" for name in names)
    raise UserError(
        f"data.root has no folder {wanted}: got {root}; put <class>/<image> files there"
    )


def _common_classes(train: Path, test: Path) -> tuple[str, ...]:
    classes, others = _class_names(train), _class_names(test)
    unlike = sorted(set(classes) ^ set(others))
    if unlike:
        raise UserError(
            f"{train} and {test} must have the same class folders: got {len(unlike)} in only one "
            f"of them, such as {unlike[0]!r}; add or remove them"
        )
    if not classes:
        raise UserError(f"{train} has no class folders: got none; put images in {train}/<class>/")
    return classes


def _class_names(folder: Path) -> tuple[str, ...]:
    return tuple(sorted(entry.name for entry in _entries(folder) if entry.is_dir()))


def _entries(folder: Path) -> Iterator[os.DirEntry[str]]:
    with os.scandir(folder) as entries:
        yield from (entry for entry in entries if not entry.name.startswith("."))


def _class_files(split: Path, name: str) -> tuple[list[str], list[str]]:
    """The names of a class's images, and the paths of what else is there; a folder ends with /."""
    images: list[str] = []
    others: list[str] = []
    for entry in _entries(split / name):
        # no stat per file, but for links: ImageNet has 1.3 million
        is_folder = entry.is_dir()
        is_image = entry.name.lower().endswith(EXTENSIONS) and not is_folder
        (images if is_image else others).append(entry.name + "/" * is_folder)
    if not images:
        folders = sorted(other for other in others if other.endswith("/"))
        hint = f"it holds {few(folders)} (is data.root one level too high?); " * bool(folders)
        raise UserError(
            f"a class folder has no images: got {split / name}; {hint}add {', '.join(EXTENSIONS)}"
            f" files or remove the class from both splits"
        )
    return sorted(images), [f"{name}/{other}" for other in sorted(others)]
