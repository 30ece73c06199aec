"""WebDataset shards: tar files whose members `KEY.jpg` and `KEY.cls` are one sample.

A shard is usually read from its beginning, through a buffer that shuffles. Here one pass over the
headers notes where each image stands, then any image is read by its offset: a batch is a pure
function of its step, as with every other data set. The `webdataset` package has no such access.
"""

import json
import re
import tarfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import lru_cache
from io import BytesIO
from pathlib import Path
from typing import IO, NamedTuple

import torch
from torch import Tensor

from pipeline_local.data import index_file
from pipeline_local.data.images.decode import read_image
from pipeline_local.data.images.skipping import UnreadableImageError
from pipeline_local.data.splits import class_names, passed_over, split_files
from pipeline_local.errors import UserError

EXTENSIONS = ("jpg", "jpeg", "png", "webp")
CLASS_FILES = ("classnames.txt", "classes.txt")
"""One name per line, in the order of the labels; the first one in `data.root` is read."""

_MEMBER = re.compile(r"((?:.*/)?[^./]+)\.([^/]*)")
"""Key and extension: WebDataset cuts a base name at its first dot."""
_HEADER = tarfile.BLOCKSIZE
_READERS = 8
"""Shards whose headers are read at once: on a network's file system each waits for its server."""


@dataclass(frozen=True)
class Shards:
    """The images of one split in the order in which the shards hold them, read when asked for."""

    files: tuple[str, ...]
    places: Tensor
    """Of each image, [N, 3] int64: number of the shard, offset in it, length in bytes."""
    labels: Tensor
    classes: tuple[str, ...]
    passed_over: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.places)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        shard, offset, length = self.places[index].tolist()
        try:
            with open(self.files[shard], "rb") as file:
                name = _name_at(file, offset)
                content = file.read(length)
        except OSError as error:
            raise UnreadableImageError(self.files[shard], str(error)) from error
        path = f"{self.files[shard]}/{name}"
        if not length:
            raise UnreadableImageError(path, f"no {', '.join(EXTENSIONS)} in this sample")
        return read_image(path, BytesIO(content)), int(self.labels[index])


def open_webdataset(
    root: Path, split: str, *, test_split: str | None = None, label_field: str = "label"
) -> Shards:
    """Note where all samples of one split are, in one pass over the headers of its shards.

    That takes some 50 microseconds per member on one core, two to three minutes for ImageNet. The
    result stays in `~/.cache/pipeline_local`, or what XDG_CACHE_HOME names, until a shard changes.

    Args:
        root: holds `train/*.tar` or `train-*.tar`, and `test` or `val` likewise; if it holds a
            `classnames.txt`, that names the classes.
        split: train or test.
        test_split: what the test split is called; null: test, val or validation.
        label_field: where `KEY.json` has the label, for samples without a `KEY.cls`.

    Raises:
        UserError: no shards, a shard that is truncated or no tar file, a sample without a label or
            with two images.
    """
    paths = split_files(root, split, ".tar", test_split)
    files = tuple(map(str, paths))
    places, labels = _index(files, label_field, index_file.stamp(files, label_field))
    source = f"the shards of {Path(files[0]).parent}"
    classes = class_names(labels, _names(root), split, source)
    return Shards(files, places, labels, classes, passed_over(paths, root, split))


class _Place(NamedTuple):
    offset: int
    length: int


@dataclass
class _Sample:
    """What is known of a sample in the middle of a shard."""

    start: int
    """Where the content of its first member begins."""
    image: _Place | None = None
    label: bytes | None = None
    facts: bytes | None = None
    extensions: set[str] = field(default_factory=set)


@lru_cache(maxsize=4)
def _index(files: tuple[str, ...], label_field: str, stamp: str) -> tuple[Tensor, Tensor]:
    """Places [N, 3] and labels [N] of all samples."""
    if stored := index_file.load(stamp):
        return stored["places"], stored["labels"]
    with ThreadPoolExecutor(_READERS) as pool:
        shards = list(pool.map(lambda path: _scan(path, label_field), files))
    parts = [
        torch.tensor([[number, *place, label] for place, label in shard], dtype=torch.int64).view(
            -1, 4
        )
        for number, shard in enumerate(shards)
    ]
    columns = torch.cat(parts)
    places, labels = columns[:, :3].contiguous(), columns[:, 3].contiguous()
    index_file.save(stamp, {"places": places, "labels": labels})
    return places, labels


def _scan(path: str, label_field: str) -> list[tuple[_Place, int]]:
    samples: dict[str, _Sample] = {}
    try:
        with open(path, "rb") as file, tarfile.open(fileobj=file, mode="r:") as shard:
            for member in shard:
                parts = _MEMBER.fullmatch(member.name)
                if parts and member.isfile():
                    _note(samples, path, parts[1], parts[2].lower(), member, file)
            _check_end(file, path, shard.offset)
    except (tarfile.TarError, OSError) as error:
        raise UserError(
            f"a shard cannot be read: got {path} ({error}); fetch it again, uncompressed"
        ) from None
    return [
        (sample.image or _Place(sample.start, 0), _label(sample, f"{path}/{key}", label_field))
        for key, sample in samples.items()
    ]


def _note(
    samples: dict[str, _Sample],
    path: str,
    key: str,
    extension: str,
    member: tarfile.TarInfo,
    file: IO[bytes],
) -> None:
    """Enter one member of a shard into its sample."""
    place = _Place(member.offset_data, member.size)
    sample = samples.setdefault(key, _Sample(place.offset))
    is_image = extension in EXTENSIONS
    if extension in sample.extensions or (is_image and sample.image):
        raise UserError(
            f"a sample must have one image and each key one sample: got a second"
            f" {extension} of {key} in {path}; write the shard anew"
        )
    sample.extensions.add(extension)
    if is_image:
        sample.image = place
    elif extension in ("cls", "json"):
        file.seek(place.offset)  # within what was buffered together with the header
        content = file.read(place.length)
        if extension == "cls":
            sample.label = content
        else:
            sample.facts = content


def _check_end(file: IO[bytes], path: str, offset: int) -> None:
    """tarfile takes a damaged header, or none, for the end; the true end is a block of zeros."""
    file.seek(offset)
    block = file.read(_HEADER)
    if len(block) < _HEADER or any(block):
        raise UserError(
            f"a shard is truncated or damaged: got {path}, which has no end after {offset} bytes;"
            f" fetch it again"
        )


def _label(sample: _Sample, path: str, label_field: str) -> int:
    try:
        if sample.label is not None:
            return int(sample.label)
        if sample.facts is not None:
            found = json.loads(sample.facts)[label_field]
            if type(found) is int:
                return found
    except (ValueError, TypeError, KeyError):
        pass
    raise UserError(
        f"a sample has no label: got {path} with {', '.join(sorted(sample.extensions))}; a label is"
        f" a whole number in .cls, or in .json as {label_field!r} (data.label_field names another)"
    )


def _names(root: Path) -> Sequence[str] | None:
    for name in CLASS_FILES:
        try:
            text = (root / name).read_text(encoding="utf-8-sig")
        except FileNotFoundError:
            continue
        except (OSError, ValueError) as error:
            raise UserError(
                f"class names cannot be read: got {root / name} ({error}); correct it"
            ) from None
        names = text.rstrip().splitlines()
        if blank := [number for number, line in enumerate(names, 1) if not line.strip()]:
            raise UserError(
                f"each line must name a class: got an empty line {blank[0]} in {root / name};"
                f" remove it, or name the class"
            )
        return names
    return None


def _name_at(file: IO[bytes], offset: int) -> str:
    """The name of the member whose content begins at `offset`, where `file` stands afterwards.

    Long names are cut at a hundred bytes: their rest stands elsewhere.
    """
    file.seek(offset - _HEADER)
    header = file.read(_HEADER)
    return header[:100].partition(b"\0")[0].decode("utf-8", "replace")
