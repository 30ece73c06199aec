"""Data sets of many files: which files are a split, and what their integer labels mean."""

import re
from collections.abc import Sequence
from pathlib import Path

from torch import Tensor

from pipeline_local.errors import UserError, counted

TEST_NAMES = ("test", "val", "validation")
"""What the test split may be called: the first one that is there is taken."""


class NoSplitError(UserError):
    """The folder is there, and has no files of a split."""


def split_files(
    root: Path,
    split: str,
    suffix: str | tuple[str, ...],
    test_split: str | None = None,
    called: str = "data.root",
) -> list[Path]:
    """The files of one split, in the order of their names.

    `root/train/*` comes first, then files in `root` or `root/data` with the word `train` in their
    names, such as `train-000000.tar`, `imagenet-train-0000.tar` or `train-00000-of-00005.parquet`.
    A name that starts with a dot is passed over.

    Args:
        root: folder of the data set.
        split: train or test.
        suffix: of the files, such as `.tar`; or several.
        test_split: what the test split is called; None: one of `TEST_NAMES`.
        called: what the user knows the folder by, for messages.

    Raises:
        NoSplitError: no such files in the folder.
        UserError: no such folder, or it cannot be read.
    """
    names = ("train",) if split == "train" else (test_split,) if test_split else TEST_NAMES
    kinds = suffix if isinstance(suffix, str) else ", ".join(suffix)
    try:
        if not root.is_dir():
            raise UserError(f"{called} is not a folder: got {root}; name one with {kinds} files")
        for name in names:
            for folder, is_split in ((root / name, True), (root, False), (root / "data", False)):
                files = _files(folder, suffix)
                if found := [path for path in files if is_split or name in _words(path)]:
                    sum(path.stat().st_size for path in found)  # fails for a link to nowhere
                    return found
    except OSError as error:
        raise UserError(f"{called} cannot be read: got {root} ({error}); allow it") from None
    ending = suffix if isinstance(suffix, str) else ""
    wanted = " or ".join(f"{name}/*{ending} or {name}-*{ending}" for name in names)
    raise NoSplitError(
        f"{called} has no {kinds} files of the {split} split: got {root}; put them at {wanted}"
    )


def passed_over(files: Sequence[Path], root: Path, split: str) -> tuple[str, ...]:
    """The names of what lies beside the files of a split and may be meant to belong to it."""
    folder = files[0].parent
    is_split = folder not in (root, root / "data")
    names = TEST_NAMES if split == "test" else (split,)
    return tuple(
        sorted(
            path.name
            for path in {*folder.iterdir()} - {*files}
            if not path.name.startswith(".") and (is_split or {*names} & {*_words(path)})
        )
    )


def class_names(
    labels: Tensor, names: Sequence[str] | None, split: str, source: str
) -> tuple[str, ...]:
    """The name of each label: as the data set gives them, else its number.

    Args:
        labels: all labels [N] of one split (int64).
        names: as many as there are classes, if the data set knows them.
        split: train or test; without names, each class must have a training sample.
        source: where the labels come from, for messages.

    Raises:
        UserError: no samples, or labels that are no class.
    """
    if not len(labels):
        raise UserError(f"the {split} split has no samples: got none in {source}; add some")
    lowest, highest = int(labels.min()), int(labels.max())
    if lowest < 0:
        raise UserError(
            f"labels must be 0 or more: got {lowest} in {source}; a split without labels is of no"
            f" use here (data.test_split names another one)"
        )
    if names is not None and highest >= len(names):
        raise UserError(
            f"labels must be below the number of classes: got {highest} in {source} for"
            f" {counted(len(names), 'class name')}; correct either"
        )
    if names is None and split == "train":
        _check_gaps(labels, highest, source)
    return tuple(names) if names is not None else tuple(map(str, range(highest + 1)))


def _check_gaps(labels: Tensor, highest: int, source: str) -> None:
    kinds = set(labels.tolist())
    if len(kinds) <= highest:
        absent = next(label for label in range(highest) if label not in kinds)
        raise UserError(
            f"labels must be 0 to {len(kinds) - 1} for {counted(len(kinds), 'class', 'classes')}:"
            f" got up to {highest}, but no sample of {absent}, in {source}; number the classes"
            f" without gaps"
        )


def _files(folder: Path, suffix: str | tuple[str, ...]) -> list[Path]:
    if not folder.is_dir():
        return []
    files = [path for path in folder.iterdir() if path.name.lower().endswith(suffix)]
    return sorted(path for path in files if not path.name.startswith("."))


def _words(path: Path) -> list[str]:
    return re.split(r"[^a-z]+", path.name.lower())
