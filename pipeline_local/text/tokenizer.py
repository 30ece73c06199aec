"""Text to token ids: bytes, or whatever a `tokenizer.json` says.

A tokenizer is known by a digest of what its ids mean, so that token files of another one are told
apart wherever they lie.
"""

import hashlib
import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from pipeline_local.errors import UserError, few
from pipeline_local.text.documents import needs

FILE, SETTINGS, SPECIAL = "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json"
END = "<|endoftext|>"
"""The end token of the tokenizers that are made here."""
_ENDS = (END, "</s>", "<|end_of_text|>", "<eos>", "<|im_end|>")
"""What the end token is called where nothing says so."""
_DECISIVE = ("added_tokens", "normalizer", "pre_tokenizer", "model")
"""Parts of a `tokenizer.json`."""
_CLASS = "PreTrainedTokenizerFast"
_NUM_BYTES = 256
_PRINTABLE = (*range(33, 127), *range(161, 173), *range(174, 256))


class Tokenizer(Protocol):
    """Turns texts into ids below `vocabulary`, and back."""

    @property
    def vocabulary(self) -> int:
        """The largest id and one: there may be gaps."""

    @property
    def end_token(self) -> int:
        """Id of the token that ends a document."""

    @property
    def digest(self) -> str:
        """A name of what the ids mean, the same wherever the tokenizer lies."""

    def encode(self, texts: Sequence[str]) -> list[npt.NDArray[np.uint32]]:
        """The ids of each text, without any token that stands for no text."""

    def decode(self, ids: Sequence[int]) -> str:
        """The text; bytes that are no character become a question mark in a lozenge."""

    def byte_lengths(self) -> npt.NDArray[np.int64] | None:
        """How many bytes of text each id stands for [vocabulary]; None where that is not known."""

    def save(self, folder: Path) -> None:
        """Write it as a Hugging Face tokenizer folder."""


@dataclass(frozen=True)
class ByteTokenizer:
    """A token for each byte of UTF-8, and one that ends a document."""

    vocabulary = _NUM_BYTES + 1
    end_token = _NUM_BYTES

    @property
    def digest(self) -> str:
        """As `Tokenizer.digest`."""
        return _digest(_BYTES)

    def encode(self, texts: Sequence[str]) -> list[npt.NDArray[np.uint32]]:
        """As `Tokenizer.encode`; an end token that stands in a text is one id, as by the file."""
        return [_with_ends(text) for text in texts]

    def decode(self, ids: Sequence[int]) -> str:
        """As `Tokenizer.decode`; the end token is left out."""
        return bytes(i for i in ids if i < _NUM_BYTES).decode("utf-8", "replace")

    def byte_lengths(self) -> npt.NDArray[np.int64]:
        """As `Tokenizer.byte_lengths`."""
        return np.array([1] * _NUM_BYTES + [0])

    def save(self, folder: Path) -> None:
        """As `Tokenizer.save`; `tokenizers` gives the same ids by the file."""
        (folder / FILE).write_text(json.dumps(_BYTES, indent=1) + "\n")
        _save_settings(folder, END)


def _with_ends(text: str) -> npt.NDArray[np.uint32]:
    first, *others = (np.frombuffer(part.encode(), np.uint8) for part in text.split(END))
    end = np.array([_NUM_BYTES], np.uint32)
    parts = [first.astype(np.uint32), *(part for other in others for part in (end, other))]
    return np.concatenate(parts, dtype=np.uint32)


@dataclass(frozen=True)
class FileTokenizer:
    """A tokenizer of the `tokenizers` library.

    Args:
        content: of its `tokenizer.json`.
        end: its end token.
        settings: further files of its folder, by their names.
    """

    content: bytes
    end: str
    settings: tuple[tuple[str, bytes], ...] = ()

    @property
    def _library(self) -> Any:  # noqa: ANN401
        return _loaded(self.content)

    @cached_property
    def vocabulary(self) -> int:
        """As `Tokenizer.vocabulary`."""
        return int(max(self._library.get_vocab(with_added_tokens=True).values())) + 1

    @property
    def end_token(self) -> int:
        """As `Tokenizer.end_token`."""
        return int(self._library.token_to_id(self.end))

    @cached_property
    def digest(self) -> str:
        """As `Tokenizer.digest`."""
        return _digest(json.loads(self.content))

    def encode(self, texts: Sequence[str]) -> list[npt.NDArray[np.uint32]]:
        """As `Tokenizer.encode`."""
        found = self._library.encode_batch_fast(list(texts), add_special_tokens=False)
        return [np.array(encoding.ids, np.uint32) for encoding in found]

    def decode(self, ids: Sequence[int]) -> str:
        """As `Tokenizer.decode`; special tokens are left out."""
        return str(self._library.decode(list(ids)))

    def byte_lengths(self) -> npt.NDArray[np.int64] | None:
        """As `Tokenizer.byte_lengths`: known of byte-level ones, a character for each byte."""
        if type(self._library.decoder).__name__ != "ByteLevel":
            return None
        lengths = np.zeros(self.vocabulary, np.int64)
        for token, number in self._library.get_vocab(with_added_tokens=False).items():
            lengths[number] = len(token)
        for number, token in self._library.get_added_tokens_decoder().items():
            lengths[number] = 0 if token.special else len(token.content.encode())
        return lengths

    def save(self, folder: Path) -> None:
        """As `Tokenizer.save`: its own files, unless they name another end token."""
        (folder / FILE).write_bytes(self.content)
        for name, content in self.settings:
            (folder / name).write_bytes(content)
        if {*_said(self.settings)} != {self.end}:
            _save_settings(folder, self.end)


def open_tokenizer(
    name: str | Path, end: str | None = None, called: str = "data.tokenizer"
) -> Tokenizer:
    """The tokenizer that a configuration or a command names.

    Args:
        name: bytes, a `tokenizer.json`, or a folder that holds one.
        end: its end token; None: what its folder says, else a usual one.
        called: what names it, for messages.

    Raises:
        UserError: there is none, it cannot be read, or its end token is not known or another one.
    """
    if str(name) == "bytes":
        if end and end != END:
            raise UserError(
                f"{called}: the end token of bytes is {END}, got {end}; leave data.end_token (or"
                f" --end) out"
            )
        return ByteTokenizer()
    path = Path(name)
    file = path / FILE if path.is_dir() else path
    try:
        content = file.read_bytes()
    except OSError as error:
        hint = ""
        if path.is_dir():
            hint = "; write one by AutoTokenizer.from_pretrained(FOLDER).save_pretrained(NEW)"
        raise UserError(f"{called}: {file} cannot be read ({error.strerror}){hint}") from None
    settings = tuple(_settings(file.parent))
    try:
        ids = _loaded(content).get_vocab(with_added_tokens=True)
    except UserError:
        raise
    except Exception as error:  # the library raises a plain one
        raise UserError(f"{called}: {file} is no tokenizer.json ({error})") from None
    said = _said(settings, called)[:1]
    candidates = [end] if end else said or [*_ENDS]
    if not (known := [token for token in candidates if token in ids]):
        raise UserError(
            f"{called}: the end token of {file} is not known: got none of"
            f" {few(candidates)} among its tokens; name it by data.end_token (or --end)"
        )
    return FileTokenizer(content, known[0], settings)


def train(texts: Iterable[str], vocabulary: int) -> FileTokenizer:
    """A byte-level BPE of at most so many tokens, all bytes and the end token among them.

    The same texts give the same tokenizer on every machine.
    """
    tokenizers = _tokenizers()
    library = tokenizers.Tokenizer(tokenizers.models.BPE())
    library.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    library.decoder = tokenizers.decoders.ByteLevel()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=[END],
        initial_alphabet=sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    library.train_from_iterator(texts, trainer)
    return FileTokenizer(library.to_str(pretty=True).encode(), END)


def _tokenizers() -> Any:  # noqa: ANN401 (an optional module)
    try:
        import tokenizers
        import tokenizers.decoders
        import tokenizers.models
        import tokenizers.pre_tokenizers
        import tokenizers.trainers
    except ImportError:
        raise needs("tokenizers", "a tokenizer other than bytes") from None
    return tokenizers


@lru_cache(maxsize=2)
def _loaded(content: bytes) -> Any:  # noqa: ANN401
    """The library's tokenizer; a file may have been saved with truncation or padding on."""
    library = _tokenizers().Tokenizer.from_str(content.decode())
    library.no_truncation()
    library.no_padding()
    return library


def _digest(facts: dict[str, Any]) -> str:
    """Of what decides the ids: saving a tokenizer anew changes the rest of its file."""
    kept = {key: facts.get(key) for key in _DECISIVE}
    text = json.dumps(kept, sort_keys=True).encode()
    return hashlib.blake2b(text, digest_size=16).hexdigest()


def _settings(folder: Path) -> Iterator[tuple[str, bytes]]:
    for name in (SETTINGS, SPECIAL):
        if (folder / name).is_file():
            yield name, (folder / name).read_bytes()


def _said(settings: Iterable[tuple[str, bytes]], called: str = "data.tokenizer") -> list[str]:
    """What each file of a folder that names an end token says: text, or a mapping with it."""
    found = []
    for name, content in settings:
        try:
            token = json.loads(content).get("eos_token")
            token = token["content"] if isinstance(token, dict) else token
        except (ValueError, AttributeError, KeyError) as error:
            raise UserError(f"{called}: its {name} is damaged ({error})") from None
        if isinstance(token, str):
            found.append(token)
    return found


def _save_settings(folder: Path, end: str) -> None:
    """Say in each file that names special tokens, which is the end token."""
    found = {name: json.loads(content) for name, content in _settings(folder)}
    for name, facts in {SETTINGS: {"tokenizer_class": _CLASS}, **found}.items():
        text = json.dumps({**facts, "eos_token": end}, indent=1) + "\n"
        (folder / name).write_text(text)


def _byte_characters() -> list[str]:
    """The character that stands for each byte in a byte-level vocabulary, as GPT-2 chose them."""
    others = iter(range(_NUM_BYTES, 2 * _NUM_BYTES))
    return [chr(byte if byte in _PRINTABLE else next(others)) for byte in range(_NUM_BYTES)]


_LEVEL = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}
_BYTES: dict[str, Any] = {
    "version": "1.0",
    "truncation": None,
    "padding": None,
    "added_tokens": [
        {
            "id": _NUM_BYTES,
            "content": END,
            "single_word": False,
            "lstrip": False,
            "rstrip": False,
            "normalized": False,
            "special": True,
        }
    ],
    "normalizer": None,
    "pre_tokenizer": _LEVEL,
    "post_processor": None,
    "decoder": _LEVEL,
    "model": {
        "type": "BPE",
        "dropout": None,
        "unk_token": None,
        "continuing_subword_prefix": None,
        "end_of_word_suffix": None,
        "fuse_unk": False,
        "byte_fallback": False,
        "ignore_merges": False,
        "vocab": {
            **{character: byte for byte, character in enumerate(_byte_characters())},
            END: _NUM_BYTES,
        },
        "merges": [],
    },
}
"""What a `tokenizer.json` of bytes holds."""
