"""One split of a folder with token files or texts, found, checked, and opened."""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np

from pipeline_local.data import index_file
from pipeline_local.data.splits import NoSplitError, passed_over, split_files
from pipeline_local.data.tokens.shards import (
    INDEX,
    SUFFIX,
    Contents,
    Shard,
    TokenStream,
    contents,
    digests,
    have_index,
    open_shard,
)
from pipeline_local.errors import UserError
from pipeline_local.text import draft, writing
from pipeline_local.text.documents import SUFFIXES
from pipeline_local.text.progress import shown
from pipeline_local.text.tokenizer import FILE, ByteTokenizer, Tokenizer, open_tokenizer


@dataclass(frozen=True)
class Options:
    """How the files of a folder are to be read; the keys of `data` with these names."""

    sequence_length: int
    tokenizer: Literal["bytes"] | Path | None = None
    end_token: str | None = None
    field: str = "text"
    vocabulary: int | None = None
    test_split: str | None = None

    def open_tokenizer(self) -> Tokenizer | None:
        """The one that is named; None where none is."""
        return None if self.tokenizer is None else open_tokenizer(self.tokenizer, self.end_token)


@dataclass(frozen=True)
class TokenSplit:
    """The ids of one split.

    Attributes:
        stream: all ids, in the order of the files.
        vocabulary: every id is below it.
        tokenizer: its digest; None where nobody knows it.
        end_token: its id; None where nobody knows it.
        bytes: of the text, in UTF-8; None where nobody knows them.
        first_bytes: of its first token; 0 where the tokenizer cannot be asked.
        files: name and digest of each file that the user has put there.
        passed_over: names of what lies beside them.
        empty: documents without text.
    """

    stream: TokenStream
    vocabulary: int
    tokenizer: str | None = None
    end_token: int | None = None
    bytes: int | None = None
    first_bytes: int = 0
    files: tuple[str, ...] = ()
    passed_over: tuple[str, ...] = ()
    empty: int = 0

    @property
    def bytes_per_token(self) -> float | None:
        """Of and for each token that is predicted: all but the first."""
        if self.bytes is None:
            return None
        return (self.bytes - self.first_bytes) / max(len(self.stream) - 1, 1)


def open_split(root: Path, split: str, options: Options) -> TokenSplit:
    """Open what a folder holds: what `pipeline-local tokenize` has written, others' token files, or
    texts, which are turned into token files in the user's cache.

    Raises:
        UserError: nothing of the kind is there, it is damaged, or of another tokenizer.
    """
    if (root / writing.FACTS).is_file():
        return _written(root, split, options)
    try:
        paths = split_files(root, split, SUFFIX, options.test_split)
    except NoSplitError:
        return _texts(root, split, options)
    tokenizer = options.open_tokenizer()
    others_have_index = have_index(root)
    shards = tuple(open_shard(path, others_have_index) for path in paths)
    vocabulary = tokenizer.vocabulary if tokenizer else options.vocabulary
    found = contents(shards)
    if vocabulary is None:
        raise UserError(
            f"data.vocabulary is needed, as {paths[0]} does not say of which tokenizer its ids are:"
            f" got ids up to {max(each.highest for each in found)}; give data.tokenizer or"
            f" data.vocabulary"
        )
    _check_range(shards, found, vocabulary)
    own = {path.with_suffix(INDEX).name for path in paths}
    others = passed_over(paths, root, split)
    stream, lengths = TokenStream(shards), tokenizer.byte_lengths() if tokenizer else None
    return TokenSplit(
        stream=stream,
        vocabulary=vocabulary,
        tokenizer=tokenizer.digest if tokenizer else None,
        end_token=tokenizer.end_token if tokenizer else None,
        bytes=None
        if lengths is None or split == "train"
        else stream.weigh(lengths, 0, len(stream)),
        first_bytes=_first_bytes(stream, tokenizer),
        files=_named(root, paths, [each.digest for each in found]),
        passed_over=tuple(name for name in others if name not in own),
    )


def _written(root: Path, split: str, options: Options) -> TokenSplit:
    """What `pipeline-local tokenize` has written."""
    facts = _facts(root)
    _check_given(root, options, facts)
    if split not in facts["splits"]:
        raise UserError(
            f"data.root has no {split} split: got {root}, with {', '.join(facts['splits'])}; put"
            f" texts at {split}/, and tokenize them anew"
        )
    own = writing.SplitFacts(**facts["splits"][split])
    path = root / f"{split}{SUFFIX}"
    shard = Shard(path, facts["dtype"], own.tokens)
    size, wanted = _size(path), own.tokens * np.dtype(shard.dtype).itemsize
    if size != wanted:
        raise UserError(
            f"a token file cannot be read: got {path} with {size} bytes, and {writing.FACTS} says"
            f" {wanted}; tokenize the texts anew"
        )
    found = contents([shard])
    _check_range([shard], found, facts["vocabulary"])
    stream = TokenStream((shard,))
    return TokenSplit(
        stream=stream,
        vocabulary=facts["vocabulary"],
        tokenizer=facts["tokenizer"],
        end_token=facts["end_token"],
        bytes=own.bytes,
        first_bytes=_first_bytes(stream, _asked(root, options, facts["tokenizer"])),
        files=_named(root, [path], [found[0].digest]),
        empty=own.empty,
    )


def _check_given(root: Path, options: Options, facts: dict[str, Any]) -> None:
    """What is given beside a folder that says it itself must be the same."""
    given = options.open_tokenizer()
    if given is not None and given.digest != facts["tokenizer"]:
        raise UserError(
            f"data.tokenizer: {options.tokenizer} is not the tokenizer of {root}; leave it out, as"
            f" the folder has its own"
        )
    if options.end_token:
        end = (given or open_tokenizer(root, options.end_token)).end_token
        if end != facts["end_token"]:
            raise UserError(
                f"data.end_token: documents of {root} end with id {facts['end_token']}, got"
                f" {options.end_token} with id {end}; leave it out, or tokenize the texts anew"
            )
    if options.vocabulary not in (None, facts["vocabulary"]):
        raise UserError(
            f"data.vocabulary: {root} has one of {facts['vocabulary']}, got {options.vocabulary};"
            f" leave it out"
        )


def _asked(root: Path, options: Options, digest: str) -> Tokenizer | None:
    """The tokenizer of a folder; None where it is not there, or its library is not installed."""
    if digest == ByteTokenizer().digest:
        return ByteTokenizer()
    try:
        return options.open_tokenizer() or open_tokenizer(root)
    except UserError:
        return None


def _first_bytes(stream: TokenStream, tokenizer: Tokenizer | None) -> int:
    """How many bytes the first token stands for."""
    first = stream.read(0, 1).tolist()
    if tokenizer is None or not first:
        return 0
    lengths = tokenizer.byte_lengths()
    return len(tokenizer.decode(first).encode()) if lengths is None else int(lengths[first[0]])


def _facts(root: Path) -> dict[str, Any]:
    path = root / writing.FACTS
    try:
        facts: dict[str, Any] = json.loads(path.read_text())
        if facts["format"] != writing.FORMAT:
            raise ValueError(f"format {facts['format']}, and {writing.FORMAT} is known")
        _ = facts["tokenizer"], facts["vocabulary"], facts["end_token"], facts["dtype"]
        for split in facts["splits"].values():
            writing.SplitFacts(**split)
        return facts
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise UserError(
            f"data.root: {path} cannot be read ({error}); tokenize the texts anew"
        ) from None


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError as error:
        raise UserError(f"a token file cannot be read: got {path} ({error.strerror})") from None


def find_texts(
    root: Path,
    split: str,
    field: str = "text",
    test_split: str | None = None,
    called: str = "data.root",
) -> writing.Texts:
    """The text files of a split of a folder, which messages call so.

    Raises:
        UserError: there are none.
    """
    return writing.Texts(tuple(split_files(root, split, SUFFIXES, test_split, called)), field)


def _texts(root: Path, split: str, options: Options) -> TokenSplit:
    """The token file of texts, in the user's cache; it is written unless it is there."""
    texts = find_texts(root, split, options.field, options.test_split)
    tokenizer = options.open_tokenizer()
    if tokenizer is None:
        raise UserError(
            f"data.tokenizer is needed for the texts of {root}; give bytes, a {FILE} or its folder,"
            f" or make tokens of them: pipeline-local tokenize {root} --vocabulary 8192"
        )
    own = digests(texts.files)
    key = (writing.FORMAT, split, own, texts.field, tokenizer.digest, tokenizer.end_token)
    name = hashlib.blake2b(repr(key).encode(), digest_size=16).hexdigest()
    folder = index_file.cache() / "tokens" / name
    if not folder.exists():
        with shown({split: texts}) as reporters:

            def fill(folder: Path) -> None:
                facts = writing.write_split(folder, split, texts, tokenizer, reporters(split))
                writing.write_facts(folder, tokenizer, {split: facts})

            draft.make(folder, {"key": name}, fill)
    found = _written(folder, split, Options(options.sequence_length))
    others = passed_over(texts.files, root, split)
    first = _first_bytes(found.stream, tokenizer)
    files = _named(root, texts.files, own)
    return replace(found, first_bytes=first, files=files, passed_over=others)


def _check_range(shards: Sequence[Shard], found: Sequence[Contents], vocabulary: int) -> None:
    """A writer whose dtype cannot hold an id may have wrapped it, without a word."""
    for shard, each in zip(shards, found, strict=True):
        if np.iinfo(shard.dtype).max < vocabulary - 1:
            raise UserError(
                f"a token file must hold ids up to {vocabulary - 1}, the tokenizer's: got"
                f" {shard.path} of {shard.dtype}, whose writer has wrapped the larger ones; write"
                f" it anew"
            )
        if each.lowest < 0 or each.highest >= vocabulary:
            raise UserError(
                f"ids must be 0 to {vocabulary - 1}, the vocabulary's: got {each.lowest} to"
                f" {each.highest} in {shard.path}; it is of another tokenizer"
            )


def _named(root: Path, paths: Sequence[Path], found: Sequence[str]) -> tuple[str, ...]:
    return tuple(
        f"{path.relative_to(root).as_posix()} {digest}"
        for path, digest in zip(paths, found, strict=True)
    )
