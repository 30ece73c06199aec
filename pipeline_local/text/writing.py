"""Token files of texts: one `.bin` for each split, and `tokens.json` that says what they are."""

import json
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import islice
from pathlib import Path
from typing import IO, Any

import numpy as np
import numpy.typing as npt

from pipeline_local.errors import UserError
from pipeline_local.text import draft
from pipeline_local.text.documents import Piece, pieces
from pipeline_local.text.tokenizer import Tokenizer

FACTS = "tokens.json"
FORMAT = 1
_BATCH = 2**21
"""Characters that are encoded at once."""
_EVERY = 2.0
"""Seconds between two notes of how far a file is."""

OnProgress = Callable[[int], None]
"""Gets the bytes of text files that have been read so far."""


@dataclass(frozen=True)
class SplitFacts:
    """What a split holds.

    Attributes:
        tokens: the end of each document among them.
        bytes: of the text, in UTF-8.
        documents: that are not empty.
        empty: documents that were passed over.
    """

    tokens: int = 0
    bytes: int = 0
    documents: int = 0
    empty: int = 0


@dataclass(frozen=True)
class _Stand:
    """How far a split is.

    Attributes:
        files: that are done.
        pieces: of the next one that are done.
        facts: of what is written.
    """

    files: int = 0
    pieces: int = 0
    facts: SplitFacts = SplitFacts()


@dataclass(frozen=True)
class Texts:
    """The text files of one split.

    Attributes:
        files: in order.
        field: of JSON lines or parquet, that holds the text.
    """

    files: tuple[Path, ...]
    field: str

    @property
    def bytes(self) -> int:
        """Of all files."""
        return sum(path.stat().st_size for path in self.files)

    def pieces(self) -> Iterator[Piece]:
        """Of all documents that are not empty."""
        for path in self.files:
            yield from (piece for piece in pieces(path, self.field) if not piece.is_blank)


def dtype_for(tokenizer: Tokenizer) -> str:
    """The narrowest dtype that holds all ids."""
    return "uint16" if tokenizer.vocabulary <= 2**16 else "uint32"


def write_split(
    folder: Path, split: str, texts: Texts, tokenizer: Tokenizer, on_progress: OnProgress
) -> SplitFacts:
    """Write `folder/SPLIT.bin`; what an interrupted call has written is kept.

    Args:
        folder: a draft.
        split: train or test.
        texts: of the split.
        tokenizer: gives the ids.
        on_progress: is called after each batch.

    Raises:
        UserError: a text cannot be read, or all are empty.
    """
    journal = draft.own(folder, f"{split}.json")
    stand, noted = _read(journal), time.monotonic()
    dtype = np.dtype(dtype_for(tokenizer))
    path = folder / f"{split}.bin"
    path.touch()
    with path.open("r+b") as file:
        file.truncate(stand.facts.tokens * dtype.itemsize)
        file.seek(0, os.SEEK_END)
        for batch, after, position in _batches(texts, stand):
            ids, facts = _encode(batch, tokenizer, stand.facts)
            stand = replace(after, facts=facts)
            file.write(ids.astype(dtype).tobytes())
            if time.monotonic() - noted >= _EVERY:
                _note(file, journal, stand)
                noted = time.monotonic()
            on_progress(position)
        _note(file, journal, stand)
    if not stand.facts.documents:
        raise UserError(
            f"the {split} split has no text: all {stand.facts.empty} documents in"
            f" {texts.files[0].parent} are empty; add some"
        )
    return stand.facts


def write_facts(folder: Path, tokenizer: Tokenizer, splits: Mapping[str, SplitFacts]) -> None:
    """Write `tokens.json`, which says what the token files hold."""
    facts = {
        "format": FORMAT,
        "tokenizer": tokenizer.digest,
        "vocabulary": tokenizer.vocabulary,
        "end_token": tokenizer.end_token,
        "dtype": dtype_for(tokenizer),
        "splits": {split: asdict(found) for split, found in splits.items()},
    }
    draft.write_json(folder / FACTS, facts)


def _batches(texts: Texts, stand: _Stand) -> Iterator[tuple[list[Piece], _Stand, int]]:
    """Pieces that are not done, where the texts then stand, and the bytes read of all files."""
    batch: list[Piece] = []
    before, size = sum(path.stat().st_size for path in texts.files[: stand.files]), 0
    after = stand
    for number, path in enumerate(texts.files[stand.files :], start=stand.files):
        done = stand.pieces if number == stand.files else 0
        for piece in islice(pieces(path, texts.field), done, None):
            done += 1
            batch.append(piece)
            size += len(piece.text)
            if size >= _BATCH:
                yield batch, _Stand(number, done), before + piece.position
                batch, size = [], 0
        before += path.stat().st_size
        after = _Stand(number + 1)
    yield batch, after, before


def _encode(
    batch: Sequence[Piece], tokenizer: Tokenizer, facts: SplitFacts
) -> tuple[npt.NDArray[np.uint32], SplitFacts]:
    """Ids of a batch, an end token behind each document, and what the split holds with them."""
    full = [piece for piece in batch if not piece.is_blank]
    try:
        found = tokenizer.encode([piece.text for piece in full])
    except Exception as error:  # the library raises a plain one
        raise UserError(f"data.tokenizer: it cannot encode a text ({error})") from None
    end = np.array([tokenizer.end_token], np.uint32)
    parts = [
        part for piece, ids in zip(full, found, strict=True) for part in (ids, end[: piece.ends])
    ]
    ids = np.concatenate([end[:0], *parts])
    return ids, SplitFacts(
        tokens=facts.tokens + len(ids),
        bytes=facts.bytes + sum(len(piece.text.encode()) for piece in full),
        documents=facts.documents + sum(piece.ends for piece in full),
        empty=facts.empty + len(batch) - len(full),
    )


def _read(journal: Path) -> _Stand:
    if not journal.is_file():
        return _Stand()
    stored: dict[str, Any] = json.loads(journal.read_text())
    return _Stand(stored["files"], stored["pieces"], SplitFacts(**stored["facts"]))


def _note(file: IO[bytes], journal: Path, stand: _Stand) -> None:
    """What the note counts is on the disk before it."""
    file.flush()
    os.fsync(file.fileno())
    draft.write_json(journal, asdict(stand))
