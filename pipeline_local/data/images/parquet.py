"""Parquet files with encoded images, as Hugging Face's hub stores them.

Parquet is read by row groups: one image costs the reading of its whole group. Groups that fit
`CACHE_BYTES` together (all of CIFAR-10) are read once. Beyond that, groups should be small: an
image of 90 kB in groups of 8 costs a tenth of its decoding to read, in groups of the hub's usual
100 once or twice its decoding, in groups of 1000 twenty times (measured from the system's cache).
To write a file anew:
`pyarrow.parquet.write_table(pyarrow.parquet.read_table(old), new, row_group_size=8)`.
"""

import json
from bisect import bisect_right
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from io import BytesIO
from itertools import accumulate, zip_longest
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pipeline_local.data.columns import IMAGE_COLUMNS, LABEL_COLUMNS
from pipeline_local.data.images.decode import read_image
from pipeline_local.data.images.skipping import UnreadableImageError
from pipeline_local.data.splits import class_names, passed_over, split_files
from pipeline_local.errors import UserError, first_line

CACHE_BYTES = 256 * 2**20
"""Row groups that a process keeps in memory; the latest one stays, however large it is."""

_Named = tuple[str, list[str]]
"""A file, and the names of the classes that it holds."""


@dataclass(frozen=True)
class _RowGroup:
    file: str
    number: int
    num_rows: int


@dataclass(frozen=True)
class ParquetImages:
    """The images of one split in the order of the files and their rows, read when asked for."""

    groups: tuple[_RowGroup, ...]
    column: str
    """Of the encoded images, such as `image.bytes`."""
    labels: Tensor
    classes: tuple[str, ...]
    passed_over: tuple[str, ...] = ()
    _cache: "_Cache" = field(default_factory=lambda: _Cache(), repr=False, compare=False)

    @cached_property
    def _ends(self) -> list[int]:
        return list(accumulate(group.num_rows for group in self.groups))

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        number = bisect_right(self._ends, index)
        group = self.groups[number]
        row = index - (self._ends[number] - group.num_rows)
        path = f"{group.file} row {row} of row group {group.number}"
        content = self._cache.column(group, self.column)[row].as_buffer()
        if content is None:
            raise UnreadableImageError(path, f"nothing in column {self.column}")
        return read_image(path, BytesIO(content)), int(self.labels[index])


def open_parquet(
    root: Path,
    split: str,
    *,
    test_split: str | None = None,
    image_column: str | None = None,
    label_column: str | None = None,
) -> ParquetImages:
    """Read the labels of one split, and where its row groups are.

    Args:
        root: holds `train/*.parquet` or `train-*.parquet`, also in a folder `data`, and `test`,
            `val` or `validation` likewise.
        split: train or test.
        test_split: what the test split is called; null: test, val or validation.
        image_column: holds encoded images, or `{bytes, path}`; null: one of `IMAGE_COLUMNS`.
        label_column: holds whole numbers; null: one of `LABEL_COLUMNS`.

    Raises:
        UserError: pyarrow is not installed, no files, a damaged file, or columns that do not fit.
    """
    pq = _pyarrow().parquet
    paths = split_files(root, split, ".parquet", test_split)
    files = [str(path) for path in paths]
    groups: list[_RowGroup] = []
    labels: list[Tensor] = []
    column, named = "", None
    for path in files:
        try:
            with pq.ParquetFile(path) as file:
                schema, metadata = file.schema_arrow, file.metadata
                own = _image_column(schema, image_column, path)
                label = _label_column(schema, label_column, path)
                if column and own != column:
                    raise UserError(f"all files must have the same columns: got {own} in {path}")
                column, found = own, _class_names(schema, label)
                named = _same_names(named, (path, found) if found else None)
                labels.append(_labels(file, label, path))
        except (OSError, _pyarrow().ArrowException) as error:
            raise _unreadable(path, error) from None
        groups += [
            _RowGroup(path, number, metadata.row_group(number).num_rows)
            for number in range(metadata.num_row_groups)
        ]
    every = torch.cat(labels)
    source = f"the files of {Path(files[0]).parent}"
    classes = class_names(every, named and named[1], split, source)
    others = passed_over(paths, root, split)
    return ParquetImages(tuple(groups), column, every, classes, others)


class _Cache:
    """The row groups that were read last, as far as they fit `CACHE_BYTES`; each process its own.

    A loader process gets an empty one.
    """

    def __init__(self) -> None:
        self._columns: OrderedDict[_RowGroup, Any] = OrderedDict()
        self._footers: dict[str, Any] = {}
        self._bytes = 0

    def __reduce__(self) -> tuple[type["_Cache"], tuple[()]]:
        return _Cache, ()

    def column(self, group: _RowGroup, name: str) -> Any:  # noqa: ANN401 (an Arrow array)
        """The encoded images of one row group."""
        if group in self._columns:
            self._columns.move_to_end(group)
            return self._columns[group]
        column = _read(group, name, self._footers)
        self._columns[group] = column
        self._bytes += column.nbytes
        while self._bytes > CACHE_BYTES and len(self._columns) > 1:
            _, oldest = self._columns.popitem(last=False)
            self._bytes -= oldest.nbytes
        return column


def _read(group: _RowGroup, name: str, footers: dict[str, Any]) -> Any:  # noqa: ANN401 (an array)
    """A column of a row group; the footer of its file is parsed once."""
    try:
        footer = footers.get(group.file)
        with _pyarrow().parquet.ParquetFile(group.file, metadata=footer) as file:
            footers[group.file] = file.metadata
            table = file.read_row_group(group.number, columns=[name], use_threads=False)
    except (OSError, _pyarrow().ArrowException) as error:
        raise _unreadable(group.file, error) from None
    column = table.column(0).combine_chunks()
    for part in name.split(".")[1:]:
        column = column.field(part)
    return column


def _unreadable(path: str, error: Exception) -> UserError:
    reason = first_line(error)
    return UserError(f"a parquet file cannot be read: got {path} ({reason}); fetch it again")


def _image_column(schema: Any, wanted: str | None, path: str) -> str:  # noqa: ANN401
    """The column of encoded images; `.bytes` is the one of Hugging Face's two parts."""
    types = _pyarrow().types
    name = _choose(schema, wanted, IMAGE_COLUMNS, "image_column", path)
    kind = schema.field(name).type
    if types.is_struct(kind) and kind.get_field_index("bytes") >= 0:
        name, kind = f"{name}.bytes", kind.field("bytes").type
    if not (types.is_binary(kind) or types.is_large_binary(kind)):
        raise UserError(
            f"data.image_column must hold encoded images: got {name} of {kind} in {path}; name a"
            f" column of binary, or of {{bytes, path}}"
        )
    return name


def _label_column(schema: Any, wanted: str | None, path: str) -> str:  # noqa: ANN401
    name = _choose(schema, wanted, LABEL_COLUMNS, "label_column", path)
    kind = schema.field(name).type
    if not _pyarrow().types.is_integer(kind):
        raise UserError(
            f"data.label_column must hold whole numbers: got {name} of {kind} in {path}; name"
            f" another one, or number the classes"
        )
    return name


def _choose(
    schema: Any,  # noqa: ANN401
    wanted: str | None,
    candidates: Sequence[str],
    key: str,
    path: str,
) -> str:
    for name in (wanted,) if wanted is not None else candidates:
        if name in schema.names:
            return name
    raise UserError(
        f"data.{key} names no column: got {wanted or 'none of ' + ', '.join(candidates)} in {path};"
        f" its columns are {', '.join(schema.names)}"
    )


def _labels(file: Any, name: str, path: str) -> Tensor:  # noqa: ANN401
    column = file.read(columns=[name]).column(0)
    if column.null_count:
        raise UserError(
            f"every image needs a label: got {column.null_count} rows without {name} in {path};"
            f" remove them"
        )
    return torch.from_numpy(column.to_numpy().astype("int64"))


def _class_names(schema: Any, label: str) -> list[str] | None:  # noqa: ANN401
    """The names that Hugging Face's `datasets` puts into the metadata of a file, if it did."""
    try:
        stored = json.loads(schema.metadata[b"huggingface"])
        names = stored["info"]["features"][label]["names"]
    except (ValueError, TypeError, KeyError):
        return None
    return [str(name) for name in names]


def _same_names(first: _Named | None, other: _Named | None) -> _Named | None:
    """Those of the first file that has any; labels count them, so all files must agree."""
    if first and other and first[1] != other[1]:
        pairs = zip_longest(first[1], other[1])
        label, (name, another) = next((i, pair) for i, pair in enumerate(pairs) if len({*pair}) > 1)
        raise UserError(
            f"all files must have the same class names: got {another!r} for label {label} in"
            f" {other[0]}, and {name!r} in {first[0]}; write them anew with the same labels"
        )
    return first or other


def _pyarrow() -> Any:  # noqa: ANN401 (an optional module)
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError:
        raise UserError(
            "data.name=parquet needs pyarrow, which is not installed; install it with:"
            " pip install 'pipeline-local[parquet]'"
        ) from None
    return pyarrow
