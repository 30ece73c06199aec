"""Documents of text files, piece by piece: plain text, JSON lines, and parquet.

A `.txt` file is one document; in the others each line or row is one. Nothing holds a whole file: a
long document comes in pieces, which are cut where a byte-level tokenizer would cut, too.
"""

import codecs
import json
import re
import sys
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from pipeline_local.errors import UserError, first_line
from pipeline_local.user_input.values import shorten

SUFFIXES = (".txt", ".jsonl", ".jsonl.gz", ".jsonl.zst", ".parquet")
"""Endings of the files that may hold text."""
PIECE = 2**16
"""Characters; a longer document comes in pieces of about so many."""
_CHUNK = 2**20
_ROWS = 256
_BREAK = re.compile(r"(?<=\S\n)(?=\S)|(?<=\S)(?= \S)")
"""Behind a single line break, or before a single space."""


class Piece(NamedTuple):
    """A part of a document.

    Attributes:
        text: not empty, except where the document is.
        starts: whether the document starts with it.
        ends: whether the document ends with it.
        position: bytes of the file that have been read.
    """

    text: str
    starts: bool
    ends: bool
    position: int

    @property
    def is_blank(self) -> bool:
        """Whether it is a whole document without a word."""
        return self.starts and self.ends and not self.text.strip()


def pieces(path: Path, field: str) -> Iterator[Piece]:
    """All documents of a file.

    Args:
        path: ends in one of `SUFFIXES`.
        field: of JSON lines or parquet, that holds the text.

    Raises:
        UserError: the file is damaged or no UTF-8, or a line or row has no such text.
    """
    name = path.name.lower()
    try:
        if name.endswith(".txt"):
            yield from _plain(path)
            return
        documents = _rows(path, field) if name.endswith(".parquet") else _lines(path, field)
        for text, position in documents:
            yield from _cut(text, position)
    except OSError as error:
        raise _damaged(path, error) from None


def _plain(path: Path) -> Iterator[Piece]:
    """One document; a byte order mark at its beginning is none of its text."""
    decoder, rest, read = codecs.getincrementaldecoder("utf-8")(), "", 0
    starts = True
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK):
            pending = len(decoder.getstate()[0])
            try:
                text = decoder.decode(chunk)
            except UnicodeDecodeError as error:
                raise _not_utf8(path, read - pending + error.start) from None
            rest += text.removeprefix("\ufeff") if read == 0 else text
            read += len(chunk)
            while len(rest) > PIECE:
                end = _end_of_piece(rest)
                yield Piece(rest[:end], starts, ends=False, position=read)
                rest, starts = rest[end:], False
    if pending := len(decoder.getstate()[0]):
        raise _not_utf8(path, read - pending)
    yield Piece(rest, starts, ends=True, position=read)


def _cut(text: str, position: int) -> Iterator[Piece]:
    start = 0
    while len(text) - start > PIECE:
        end = start + _end_of_piece(text[start : start + PIECE + 1])
        yield Piece(text[start:end], start == 0, ends=False, position=position)
        start = end
    yield Piece(text[start:], start == 0, ends=True, position=position)


def _end_of_piece(text: str) -> int:
    """The last place within `PIECE` characters where words part, as far as there is one."""
    for start in (PIECE - 1000, PIECE // 2):
        window = range(max(start, 0), PIECE)
        found = [match.start() for match in _BREAK.finditer(text, window.start, window.stop + 1)]
        if inside := [place for place in found if 0 < place <= PIECE]:
            return inside[-1]
    return PIECE


def _lines(path: Path, field: str) -> Iterator[tuple[str, int]]:
    """The text of each line that is not blank, and the bytes of the file read so far."""
    for number, (line, position) in enumerate(_raw_lines(path), start=1):
        if not line.strip():
            continue
        try:
            found = json.loads(line.decode("utf-8-sig"))
        except UnicodeDecodeError as error:
            raise UserError(
                f"a text is no UTF-8: got byte {error.start} of line {number} of {path}; convert it"
            ) from None
        except (ValueError, RecursionError) as error:  # the latter: nested too deeply
            raise UserError(
                f"a line is no JSON: got line {number} of {path} ({error}); correct it"
            ) from None
        if not isinstance(found, dict) or field not in found:
            keys = ", ".join(map(str, found)) if isinstance(found, dict) else shorten(found)
            raise UserError(
                f"data.field: line {number} of {path} has no {field!r}, got {keys}; name the field"
                f" of the text"
            )
        yield _text(found[field], field, f"line {number} of {path}"), position


def _text(value: object, field: str, where: str) -> str:
    """A document; null stands for an empty one."""
    if value is None:
        return ""
    if not isinstance(value, str):
        raise UserError(
            f"data.field: {field!r} must be text, got {shorten(value)} in {where}; name the field"
            f" of the text"
        )
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise UserError(
            f"a text is no UTF-8: got half a character ({value[error.start]!r}) in {where}; correct"
            f" it"
        ) from None
    return value


def _raw_lines(path: Path) -> Iterator[tuple[bytes, int]]:
    rest: list[bytes] = []
    position = 0
    for chunk, position in _chunks(path):
        first, *others = chunk.split(b"\n")
        rest.append(first)
        for line in others:
            yield b"".join(rest), position
            rest = [line]
    yield b"".join(rest), position


def _chunks(path: Path) -> Iterator[tuple[bytes, int]]:
    """The content, decompressed, and the bytes of the file read so far."""
    start = {".gz": _gzip, ".zst": _zstandard}.get(path.suffix.lower())
    decoder: Any = None
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK):
            if start is None:
                yield chunk, file.tell()
                continue
            if decoder is not None and decoder.eof:
                chunk = chunk.lstrip(b"\0")
            while chunk:  # a file may be several streams, one behind the other
                if decoder is None or decoder.eof:
                    decoder = start()
                try:
                    yield decoder.decompress(chunk), file.tell()
                except _decompression_errors() as error:
                    raise _damaged(path, error) from None
                chunk = decoder.unused_data.lstrip(b"\0")  # a tape's padding
    if decoder is not None and not decoder.eof:
        raise _damaged(path, EOFError("it is cut off"))


def _gzip() -> Any:  # noqa: ANN401 (a decompressor)
    return zlib.decompressobj(wbits=31)


def _zstandard() -> Any:  # noqa: ANN401 (a decompressor)
    try:
        import zstandard
    except ImportError:
        raise needs("zstandard", "a .zst file") from None
    return zstandard.ZstdDecompressor(max_window_size=2**31).decompressobj()


def _decompression_errors() -> tuple[type[Exception], ...]:
    module = sys.modules.get("zstandard")
    return (zlib.error,) if module is None else (zlib.error, module.ZstdError)


def _rows(path: Path, field: str) -> Iterator[tuple[str, int]]:
    """The text of each row, and about how many bytes of the file have been read."""
    pyarrow, parquet = _pyarrow()
    size, done = path.stat().st_size, 0
    try:
        with parquet.ParquetFile(path) as file:
            if field not in file.schema_arrow.names:
                raise UserError(
                    f"data.field names no column: got {field!r} for {path}; its columns are"
                    f" {', '.join(file.schema_arrow.names)}"
                )
            total = max(file.metadata.num_rows, 1)
            for batch in file.iter_batches(_ROWS, columns=[field]):
                for text in _column(batch.column(0), field, path, done):
                    done += 1
                    yield text, size * done // total
    except pyarrow.ArrowException as error:
        raise _damaged(path, error) from None


def _column(column: Any, field: str, path: Path, first: int) -> Iterator[str]:  # noqa: ANN401
    for row, value in enumerate(column, start=first):
        where = f"row {row} of {path}"
        try:
            text = value.as_py()
        except UnicodeDecodeError as error:
            raise UserError(
                f"a text is no UTF-8: got byte {error.start} in {where}; convert it"
            ) from None
        yield _text(text, field, where)


def _pyarrow() -> tuple[Any, Any]:
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError:
        raise needs("pyarrow", "a .parquet file") from None
    return pyarrow, pyarrow.parquet


def needs(package: str, what: str) -> UserError:
    """The error for a library that is not installed."""
    return UserError(
        f"{what} needs {package}, which is not installed; install it with:"
        ' pip install "pipeline-local[lm]"'
    )


def _not_utf8(path: Path, byte: int) -> UserError:
    return UserError(f"a text is no UTF-8: got byte {byte} of {path}; convert it")


def _damaged(path: Path, error: Exception) -> UserError:
    reason = first_line(error)
    return UserError(f"a text cannot be read: got {path} ({reason}); fetch it again")
