"""`pipeline-local tokenize`: token files of a folder of texts, by a tokenizer of theirs or a given
one."""

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline_local.console.screen import say
from pipeline_local.data.splits import NoSplitError, passed_over
from pipeline_local.data.tokens.opening import find_texts
from pipeline_local.errors import UserError, counted, few
from pipeline_local.text import draft
from pipeline_local.text.progress import shown
from pipeline_local.text.tokenizer import (
    END,
    FILE,
    FileTokenizer,
    Tokenizer,
    open_tokenizer,
    train,
)
from pipeline_local.text.writing import OnProgress, SplitFacts, Texts, write_facts, write_split
from pipeline_local.user_input import new_file

_LEAST = 257
_TRAINING = "tokenizer"
"""The name of the bar of its training."""


@dataclass(frozen=True)
class TokenizeOptions:
    """What is asked for.

    Args:
        root: holds texts of both splits, or of one.
        vocabulary: of a tokenizer to be trained on the training split; None: one is given.
        tokenizer: bytes, a `tokenizer.json` or its folder; None: one is trained.
        output: a new folder; None: `root` with a suffix.
        field: of JSON lines or parquet, that holds the text.
        end: token of the given tokenizer that ends a document; None: what its folder says.
    """

    root: Path
    vocabulary: int | None = None
    tokenizer: str | Path | None = None
    output: Path | None = None
    field: str = "text"
    end: str | None = None

    @property
    def folder(self) -> Path:
        """Where the result goes."""
        if self.output is not None:
            return self.output
        root, path = _named(self.root), _named(Path(self.tokenizer or str(self.vocabulary)))
        name = path.parent.name if path.name == FILE else path.name
        return root.parent / f"{root.name}-{name}".removeprefix("-")

    def texts(self) -> dict[str, Texts]:
        """The files of each split.

        Raises:
            UserError: there are none, or none to train a tokenizer on.
        """
        found: dict[str, Texts] = {}
        absent: list[NoSplitError] = []
        for split in ("train", "test"):
            try:
                found[split] = find_texts(self.root, split, self.field, called="DATA")
            except NoSplitError as error:
                absent.append(error)
        if absent and (not found or (self.vocabulary and "train" not in found)):
            raise absent[0]
        return found

    def passed_over(self, texts: dict[str, Texts]) -> list[str]:
        """The names of what lies beside the files of each split, and is no text."""
        return [
            f"{split}: {name}"
            for split, found in texts.items()
            for name in passed_over(found.files, self.root, split)
        ]


def _named(path: Path) -> Path:
    """Absolute, with a name of its own, which `..` is not. A link keeps its name."""
    return path.resolve() if ".." in path.parts else path.absolute()


def tokenize(request: TokenizeOptions) -> Path:
    """Write token files, `tokens.json` and the tokenizer into a new folder, and say what is in it.

    What an interrupted call has done is kept in a folder beside it, and not done again.

    Raises:
        UserError: a mistake that the user must fix; the folder is then not there.
    """
    if request.vocabulary is not None and request.vocabulary < _LEAST:
        raise UserError(
            f"--vocabulary: at least {_LEAST}, for 256 bytes and the end token, got"
            f" {request.vocabulary}"
        )
    if request.vocabulary is not None and request.end and request.end != END:
        raise UserError(
            f"--end: the end token of a tokenizer that --vocabulary trains is {END}, got"
            f" {request.end}; leave it out, or give --tokenizer"
        )
    texts, output = request.texts(), request.folder
    new_file.check("--output", output)
    given = None
    if request.tokenizer is not None:
        given = open_tokenizer(request.tokenizer, request.end, "--tokenizer")
    if names := request.passed_over(texts):
        say(f"{len(names)} passed over in DATA={request.root}: {few(names)}")
    training = {} if given else {_TRAINING: texts["train"]}
    with shown({**training, **texts}) as reporters:
        made = draft.make(
            output,
            _facts(request, texts, given),
            lambda f: _fill(f, request, texts, given, reporters),
        )
    if not made:
        raise UserError(f"--output: another process has written {output} meanwhile; use it")
    say(f"wrote {output}; train with data.name=tokens data.root={output} data.sequence_length=N")
    return output


def _facts(
    request: TokenizeOptions, texts: dict[str, Texts], given: Tokenizer | None
) -> dict[str, Any]:
    """What a draft must have been begun with, to go on with it."""
    files = {
        split: [
            (str(path.absolute()), path.stat().st_size, path.stat().st_mtime_ns)
            for path in found.files
        ]
        for split, found in texts.items()
    }
    tokenizer = given and (given.digest, given.end_token)
    return {
        "files": files,
        "field": request.field,
        "vocabulary": request.vocabulary,
        "tokenizer": tokenizer,
    }


def _fill(
    folder: Path,
    request: TokenizeOptions,
    texts: dict[str, Texts],
    given: Tokenizer | None,
    reporters: Callable[[str], OnProgress],
) -> None:
    tokenizer = given
    if tokenizer is None:
        assert request.vocabulary is not None, "one of both is given"
        tokenizer = _trained(folder, texts["train"], request.vocabulary, reporters(_TRAINING))
    splits = {}
    for split, found in texts.items():
        splits[split] = write_split(folder, split, found, tokenizer, reporters(split))
        say(f"{split}: {_described(splits[split])}")
    tokenizer.save(folder)
    write_facts(folder, tokenizer, splits)


def _trained(folder: Path, texts: Texts, vocabulary: int, on_progress: OnProgress) -> Tokenizer:
    """The tokenizer that is in the draft, or else a new one."""
    kept = draft.own(folder, FILE)
    if not kept.is_file():
        say(f"training a tokenizer of {counted(vocabulary, 'token')} on {texts.bytes / 1e6:.1f} MB")
        made = train(_read(texts, on_progress), vocabulary)
        if made.vocabulary < vocabulary:
            say(f"the text has only {counted(made.vocabulary, 'different token')}")
        draft.write_json(kept, json.loads(made.content))
    return FileTokenizer(kept.read_bytes(), END)


def _read(texts: Texts, on_progress: OnProgress) -> Iterator[str]:
    done = 0
    for path in texts.files:
        for piece in Texts((path,), texts.field).pieces():
            on_progress(done + piece.position)
            yield piece.text
        done += path.stat().st_size


def _described(facts: SplitFacts) -> str:
    each = facts.bytes / max(facts.tokens - 1, 1)
    empty = counted(facts.empty, "empty one is", "empty ones are")
    empty = f"; {empty} passed over" if facts.empty else ""
    return (
        f"{counted(facts.tokens, 'token')} of {facts.bytes / 1e6:.1f} MB in"
        f" {counted(facts.documents, 'document')}, {each:.3f} bytes per token{empty}"
    )
