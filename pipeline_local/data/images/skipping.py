"""Images that cannot be read: passed over, always in the same way."""

from collections.abc import Iterator

import torch
from torch import Tensor

from pipeline_local.data.images.subset import Dataset
from pipeline_local.errors import UserError


class UnreadableImageError(UserError):
    """A file is missing, corrupt or no image.

    Args:
        path: of the file.
        reason: in one line.
    """

    def __init__(self, path: str, reason: str) -> None:
        super().__init__(path, reason)  # so that it travels between processes
        self.path = path
        self.reason = reason

    def __str__(self) -> str:
        return (
            f"an image cannot be read: got {self.path} ({self.reason}); repair or remove it, or"
            f" pass over such images with data.on_error=skip"
        )


def read_or_next(dataset: Dataset, index: int, skipped: list[str]) -> tuple[Tensor, int]:
    """A sample, or in its place the next one of its class that can be read, from the end the first.

    A pure function of the data set, so neither loader processes nor a resumed run change a batch.

    Args:
        dataset: images by index.
        index: of the sample.
        skipped: gets the paths that were passed over.

    Raises:
        UserError: not one image of the class can be read.
    """
    for candidate in _same_class(dataset, index):
        try:
            return dataset[candidate]
        except UnreadableImageError as error:
            skipped.append(error.path)
    name = dataset.classes[int(dataset.labels[index])]
    raise UserError(
        f"not one training image of class {name!r} can be read: got {skipped[-1]} and the others;"
        f" repair them or remove the class"
    )


def read_or_none(dataset: Dataset, index: int, skipped: list[str]) -> tuple[Tensor, int] | None:
    """A sample, or None if it cannot be read; `skipped` then gets its path."""
    try:
        return dataset[index]
    except UnreadableImageError as error:
        skipped.append(error.path)
        return None


def _same_class(dataset: Dataset, index: int) -> Iterator[int]:
    """The sample itself first; the others cost a look at all labels."""
    yield index
    labels = dataset.labels
    same = torch.nonzero(labels == labels[index]).flatten().tolist()
    at = same.index(index)
    yield from same[at + 1 :]
    yield from same[:at]
