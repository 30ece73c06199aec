"""`data.name=tokens`: sequences of token ids, each to be continued by one token at every place."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, fields, replace
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from pipeline_local.config import DataConfig, Positive
from pipeline_local.data.info import DataInfo, Split
from pipeline_local.data.loading import Batch, load
from pipeline_local.data.registry import DATA, problems
from pipeline_local.data.sampler import train_indices
from pipeline_local.data.share import WHOLE, Share
from pipeline_local.data.skipped import Skipped
from pipeline_local.data.tokens import opening, shards
from pipeline_local.data.tokens.opening import Options, TokenSplit
from pipeline_local.data.tokens.shards import TokenStream
from pipeline_local.errors import ConfigError, UserError, counted, few
from pipeline_local.layout import IGNORE_LABEL
from pipeline_local.text.tokenizer import FILE, Tokenizer, open_tokenizer


@dataclass(frozen=True)
class TokenData:
    """The tokens that a configuration names, in sequences of `data.sequence_length`.

    All documents of a split are one stream of ids. Sequence i begins where the one before it has
    ended, and its labels are the ids one place further on.
    """

    config: DataConfig

    def describe(self) -> DataInfo:
        """The facts of both splits; every id is compared with the vocabulary.

        Raises:
            UserError: the data is missing or damaged, or too small for one batch.
        """
        _forget()
        train, test = _open(self.config, "train"), _open(self.config, "test")
        length = _options(self.config).sequence_length
        return DataInfo(
            num_train=self._num_train(train),
            num_test=self._num_test(test),
            num_classes=train.vocabulary,
            sample_shape=(length,),
            mean=(),
            std=(),
            classes=(),
            label_shape=(length,),
            dtype="int64",
            tokenizer=train.tokenizer,
            end_token=train.end_token,
            bytes_per_token=self._bytes_per_token(test),
            files=train.files,
        )

    def train_batches(
        self,
        info: DataInfo,
        seed: int,
        start: int,
        steps: int,
        skipped: Skipped,
        share: Share = WHOLE,
    ) -> Iterator[Batch]:
        """As `RunData.train_batches`: x and y [B, T], int64."""
        stream, size = _open(self.config, "train").stream, self.config.batch_size
        source = TokenTrainSource(stream, info.sample_shape[0], info.num_train, size, seed, share)
        for batch, _ in load(source, range(start, start + steps), self.config.workers):
            yield batch

    def test_batches(
        self, info: DataInfo, skipped: Skipped, share: Share = WHOLE
    ) -> Iterator[Batch]:
        """As `RunData.test_batches`: x and y [B, T], int64; a place without a token to predict has
        the label `IGNORE_LABEL`."""
        stream, size = _open(self.config, "test").stream, self.config.batch_size
        source = TokenTestSource(stream, info.sample_shape[0], info.num_test, size, share)
        for batch, _ in load(source, range(-(-info.num_test // size)), self.config.workers):
            yield batch

    def ready(
        self, info: DataInfo, dtype: torch.dtype, device: torch.device
    ) -> Callable[[Tensor], Tensor]:
        """As `RunData.ready`: ids stay as they are."""
        return lambda x: x

    def check_again(self, info: DataInfo, split: Split) -> DataInfo:
        """As `RunData.check_again`.

        Raises:
            UserError: the split is not there, or its ids, end token or sequences are not those of
            the run.
        """
        _forget()
        found, length = _open(self.config, split), _options(self.config).sequence_length
        if (length,) != info.sample_shape:
            raise UserError(
                f"data.sequence_length: got {length}, and the run was trained on"
                f" {info.sample_shape[0]}; leave it out"
            )
        if not _fits(found.tokenizer, found.vocabulary, info):
            remedy = (
                "tokenize the text with the run's: pipeline-local tokenize FOLDER --tokenizer PATH"
                if found.tokenizer or not info.tokenizer
                else "name the run's by data.tokenizer=PATH, if they are of it"
            )
            raise UserError(
                f"data: the tokens of the {split} split are of another tokenizer"
                f" ({_named(found.tokenizer, found.vocabulary)}) than those of the run"
                f" ({_named(info.tokenizer, info.num_classes)}); {remedy}"
            )
        _check_end(found.end_token, info)
        if split == "train":
            return replace(info, num_train=self._num_train(found), files=found.files)
        each = self._bytes_per_token(found)
        return replace(info, num_test=self._num_test(found), bytes_per_token=each)

    def passed_over(self) -> list[str]:
        """As `RunData.passed_over`; also the number of empty documents."""
        splits: tuple[Split, ...] = ("train", "test")
        found = {split: _open(self.config, split) for split in splits}
        names = [f"{split}: {name}" for split, each in found.items() for name in each.passed_over]
        empty = sum(each.empty for each in found.values())
        line = f"{len(names)} passed over in data.root={self.config.root}: {few(names)}"
        lines = [line] if names else []
        return lines + ([f"{empty} empty documents are passed over"] if empty else [])

    def _num_train(self, train: TokenSplit) -> int:
        """Full sequences whose every token has a next one."""
        length, size = _options(self.config).sequence_length, self.config.batch_size
        number = max(0, len(train.stream) - 1) // length
        number = min(number, self.config.limit or number)
        if size > number:
            remedy = "lower it" if self.config.limit is None else "lower it or raise data.limit"
            remedy = remedy if number else "lower data.sequence_length, or add text"
            raise UserError(
                f"data.batch_size must not exceed the {counted(number, 'training sequence')} of"
                f" data.sequence_length={length} in {counted(len(train.stream), 'token')}: got"
                f" {size}; {remedy}"
            )
        return number

    def _num_test(self, test: TokenSplit) -> int:
        """Sequences that predict every token but the first; the last one is filled up."""
        number = -(-(len(test.stream) - 1) // _options(self.config).sequence_length)
        if number < 1:
            raise UserError(
                f"the test split must have a token to predict: got"
                f" {counted(len(test.stream), 'token')} in"
                f" {self.config.root}; add some text"
            )
        return min(number, self.config.limit or number)

    def _bytes_per_token(self, test: TokenSplit) -> float | None:
        """Of the sequences that are scored; None where their bytes are not known."""
        options = _options(self.config)
        predicted = self._num_test(test) * options.sequence_length
        if predicted >= len(test.stream) - 1:
            return test.bytes_per_token
        tokenizer = options.open_tokenizer()
        lengths = tokenizer.byte_lengths() if tokenizer else None
        if lengths is None:
            return None
        return (
            test.stream.weigh(lengths, 1, predicted + 1) / predicted
        )  # nothing predicts the first


def _fits(tokenizer: str | None, vocabulary: int, info: DataInfo) -> bool:
    """Whether tokens may be those of a run. Where nobody has said of which tokenizer it is, it may
    be said later: all ids are then below the number that was given instead."""
    if info.tokenizer is None and tokenizer is not None:
        return vocabulary <= info.num_classes
    return (tokenizer, vocabulary) == (info.tokenizer, info.num_classes)


def _check_end(found: int | None, info: DataInfo) -> None:
    if info.end_token not in (None, found):
        raise UserError(
            f"data.end_token: documents must end with the run's, id {info.end_token}, got id"
            f" {found}; name that by data.end_token (or --end)"
        )


def _named(tokenizer: str | None, vocabulary: int) -> str:
    return f"{(tokenizer or 'unknown')[:8]} of {counted(vocabulary, 'token')}"


@lru_cache(maxsize=2)
def _open(data: DataConfig, split: Split) -> TokenSplit:
    if lines := problems(data):
        raise ConfigError(lines)
    options = _options(data)
    if options.vocabulary is not None and options.tokenizer is not None:
        raise UserError(
            "data.vocabulary: data.tokenizer says how large it is; leave one of them out, or set it"
            " to null"
        )
    entry: Any = DATA.find(data.name)
    found: TokenSplit = entry.open(data.root, split, options)
    return found


def tokenizer_of(data: DataConfig, info: DataInfo) -> Tokenizer:
    """The tokenizer of a run, for texts that come later.

    Args:
        data: of the run.
        info: the facts of its data.

    Raises:
        UserError: nothing says which it is, or it is another one by now.
    """
    options = _options(data)
    found = options.open_tokenizer()
    if found is None and data.root is not None and (data.root / FILE).is_file():
        found = open_tokenizer(data.root, options.end_token)
    if found is None:
        raise UserError(
            f"data.tokenizer: nothing in data.root={data.root} says which it is; name it by"
            f" data.tokenizer=PATH"
        )
    if not _fits(found.digest, found.vocabulary, info):
        raise UserError(
            f"data.tokenizer: got {_named(found.digest, found.vocabulary)}, and the run was trained"
            f" with {_named(info.tokenizer, info.num_classes)}; name that by data.tokenizer=PATH"
        )
    _check_end(found.end_token, info)
    return found


def _forget() -> None:
    """The files may have changed since an earlier run of this process."""
    _open.cache_clear()
    shards.forget()


def _options(data: DataConfig) -> Options:
    checked = DATA.options(data.name, data.args)
    return Options(
        **{each.name: checked[each.name] for each in fields(Options) if each.name in checked}
    )


@dataclass(frozen=True)
class TokenTrainSource:
    """The training batches of a run.

    Args:
        stream: of ids.
        length: of a sequence.
        count: of sequences.
        batch_size: sequences in a batch.
        seed: of their order.
        share: what is read of each batch.
    """

    stream: TokenStream
    length: int
    count: int
    batch_size: int
    seed: int
    share: Share = WHOLE
    skipped: list[str] = field(default_factory=list)

    def batch(self, step: int) -> Batch:
        """x and y [B, T]."""
        pairs = train_indices(self.count, self.batch_size, self.seed, step)
        own = [pairs[row] for row in self.share.rows(len(pairs))]
        length, read = self.length, self.stream.read
        rows = np.stack([read(i * length, i * length + length + 1) for _, i in own])
        both = torch.from_numpy(rows)
        return both[:, :-1].contiguous(), both[:, 1:].contiguous()


@dataclass(frozen=True)
class TokenTestSource:
    """The test batches; what is missing in the last one has the id 0 and no label."""

    __test__ = False  # for pytest

    stream: TokenStream
    length: int
    count: int
    batch_size: int
    share: Share = WHOLE
    skipped: list[str] = field(default_factory=list)

    def batch(self, step: int) -> Batch:
        """x and y [B, T]."""
        own = self.share.rows(self.batch_size)
        x = torch.zeros(len(own), self.length, dtype=torch.int64)
        y = torch.full_like(x, IGNORE_LABEL)
        there = min(self.batch_size, self.count - step * self.batch_size)
        for row, place in enumerate(own):
            if place >= there:
                break
            start = (step * self.batch_size + place) * self.length
            ids = torch.from_numpy(self.stream.read(start, start + self.length + 1))
            known = ids[: self.length]
            x[row, : len(known)] = known
            y[row, : len(ids) - 1] = ids[1:]
        return x, y


class TokenEntry:
    """The entry of `DATA`: gives its own `RunData` instead of opening images."""

    __module__ = __name__
    needs_root = True

    def __call__(
        self,
        root: Path | None,
        split: str,
        *,
        sequence_length: Positive,
        tokenizer: Literal["bytes"] | Path | None = None,
        end_token: str | None = None,
        field: str = "text",
        vocabulary: Positive | None = None,
        test_split: str | None = None,
        augment: Literal["none"] = "none",
        mixup: Literal[0] = 0,
        image_size: None = None,
        on_error: Literal["fail"] = "fail",
    ) -> Any:  # noqa: ANN401
        """A split.

        Args:
            root: holds token files or texts of both splits.
            split: train or test.
            sequence_length: tokens that the network sees at once.
            tokenizer: bytes, a `tokenizer.json` or its folder; for texts, and for token files that
                do not say of which tokenizer they are.
            end_token: of the tokenizer, where its folder does not say.
            field: of JSON lines or parquet, that holds the text.
            vocabulary: number of different ids, where there is no tokenizer.
            test_split: what the test split is called; null: test, val or validation.
            augment, mixup, image_size, on_error: of images alone.
        """
        options = Options(sequence_length, tokenizer, end_token, field, vocabulary, test_split)
        return self.open(root, split, options)

    def open(self, root: Path | None, split: str, options: Options) -> TokenSplit:
        """A split of a folder."""
        assert root is not None, "an entry that needs a root"
        return opening.open_split(root, split, options)

    def run_data(self, data: DataConfig) -> TokenData:
        """The tokens of a configuration."""
        return TokenData(data)


ENTRY = TokenEntry()
