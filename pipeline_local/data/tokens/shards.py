"""Files of token ids, read by memory map: ours, nanoGPT's, llm.c's and Megatron's."""

import hashlib
from bisect import bisect_right
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property, lru_cache
from itertools import accumulate
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from pipeline_local.data import index_file
from pipeline_local.errors import UserError

SUFFIX, INDEX = ".bin", ".idx"
Ids = npt.NDArray[Any]

_LLM_C = {20240520: (1, "uint16"), 20240801: (7, "uint32")}
"""The magic number with which a file of llm.c begins, its version, and the dtype of its ids."""
_LLM_C_HEADER = 256 * 4
_MEGATRON = b"MMIDIDX\x00\x00"
_MEGATRON_DTYPES = {1: "uint8", 2: "int8", 3: "int16", 4: "int32", 5: "int64", 8: "uint16"}
_BLOCK = 2**22
_READERS = 8


@dataclass(frozen=True)
class Shard:
    """Ids [count] in a file, from a byte on."""

    path: Path
    dtype: str
    count: int
    offset: int = 0

    def ids(self) -> Ids:
        """All ids, mapped; nothing is read yet."""
        return _mapped(self)


@lru_cache(maxsize=4096)
def _mapped(shard: Shard) -> Ids:
    if not shard.count:
        return np.empty(0, shard.dtype)
    return np.memmap(shard.path, shard.dtype, "r", offset=shard.offset, shape=(shard.count,))


def forget() -> None:
    """Let go of all mapped files: others may have taken their places."""
    _mapped.cache_clear()


@dataclass(frozen=True)
class TokenStream:
    """The ids of several shards, one behind the other."""

    shards: tuple[Shard, ...]

    @cached_property
    def _ends(self) -> list[int]:
        return list(accumulate(shard.count for shard in self.shards))

    def __len__(self) -> int:
        return self._ends[-1]

    def read(self, start: int, stop: int) -> npt.NDArray[np.int64]:
        """Ids from `start` on, up to and without `stop` or the end; int64."""
        parts = [np.empty(0, np.int64)]
        for number in range(bisect_right(self._ends, start), len(self.shards)):
            shard = self.shards[number]
            begin = self._ends[number] - shard.count
            if begin >= stop:
                break
            parts.append(shard.ids()[max(start - begin, 0) : stop - begin].astype(np.int64))
        return np.concatenate(parts)

    def weigh(self, weights: npt.NDArray[np.int64], start: int, stop: int) -> int:
        """The sum of a weight [vocabulary] of each of the ids from `start` to `stop`."""
        return sum(
            int(weights[self.read(begin, min(begin + _BLOCK, stop))].sum())
            for begin in range(start, stop, _BLOCK)
        )


def have_index(root: Path) -> bool:
    """Whether token files of a folder, or of those in it, are Megatron's."""
    found = (*root.glob(f"*{INDEX}"), *root.glob(f"*/*{INDEX}"))
    return any(path.with_suffix(SUFFIX).is_file() for path in found)


def open_shard(path: Path, others_have_index: bool = False) -> Shard:
    """Find out of which kind a file is, and whether it is whole.

    A `.idx` beside it says that it is Megatron's, a magic number that it is llm.c's; any other is
    nanoGPT's, uint16 without a header.

    Args:
        path: of the file.
        others_have_index: whether those of its data are Megatron's: it is no nanoGPT's then.

    Raises:
        UserError: it is damaged, or its index is missing.
    """
    index = path.with_suffix(INDEX)
    try:
        size = path.stat().st_size
        if index.is_file():
            return _megatron(path, index, size)
        with path.open("rb") as file:
            header = file.read(12)
    except OSError as error:
        raise _damaged(path, str(error)) from None
    magic, version, count = (int.from_bytes(header[i : i + 4], "little") for i in (0, 4, 8))
    if magic in _LLM_C:
        known, dtype = _LLM_C[magic]
        if version != known:
            raise _damaged(path, f"it is of llm.c's version {version}, and {known} is known")
        return _whole(Shard(path, dtype, count, _LLM_C_HEADER), size)
    if others_have_index:
        raise _damaged(path, f"{index.name} is not beside it, and others have theirs")
    return _whole(Shard(path, "uint16", size // 2), size)


def _megatron(path: Path, index: Path, size: int) -> Shard:
    content = index.read_bytes()
    version, code = (int.from_bytes(content[i:j], "little") for i, j in ((9, 17), (17, 18)))
    if not content.startswith(_MEGATRON) or version != 1 or code not in _MEGATRON_DTYPES:
        raise _damaged(index, "it is no index of Megatron's, version 1, of whole numbers")
    sequences = int.from_bytes(content[18:26], "little")
    lengths = content[34 : 34 + 4 * sequences]
    if len(lengths) < 4 * sequences:
        raise _damaged(index, "it is cut off")
    count = int(np.frombuffer(lengths, "<i4").sum(dtype=np.int64))
    return _whole(Shard(path, _MEGATRON_DTYPES[code], count), size)


def _whole(shard: Shard, size: int) -> Shard:
    wanted = shard.offset + shard.count * np.dtype(shard.dtype).itemsize
    if wanted != size:
        raise _damaged(
            shard.path, f"{size} bytes, where {shard.count} ids of {shard.dtype} take {wanted}"
        )
    return shard


def _damaged(path: Path, reason: str) -> UserError:
    return UserError(f"a token file cannot be read: got {path} ({reason}); write or fetch it again")


@dataclass(frozen=True)
class Contents:
    """What is in a file.

    Attributes:
        digest: of all its bytes.
        lowest: id.
        highest: id.
    """

    digest: str
    lowest: int = 0
    highest: int = 0


def contents(shards: Sequence[Shard]) -> list[Contents]:
    """What is in each of some token files, in one pass over them.

    The result stays in the user's cache until a file changes.
    """
    read_as = repr([(shard.dtype, shard.offset) for shard in shards])
    stamp = index_file.stamp((str(shard.path) for shard in shards), "tokens", read_as)
    stored = index_file.load(stamp)
    if stored is None:
        with ThreadPoolExecutor(_READERS) as pool:
            rows = list(pool.map(_scan, shards))
        digests = torch.tensor([[*digest] for digest, _, _ in rows], dtype=torch.uint8)
        stored = {"digests": digests, "ranges": torch.tensor([row[1:] for row in rows])}
        index_file.save(stamp, stored)
    return [_contents(*row) for row in zip(stored["digests"], stored["ranges"], strict=True)]


def _contents(digest: Tensor, ranges: Tensor) -> Contents:
    lowest, highest = map(int, ranges)
    return Contents(bytes(digest.tolist()).hex(), lowest, highest)


def _scan(shard: Shard) -> tuple[bytes, int, int]:
    """Digest, lowest and highest id."""
    digest, ids = hashlib.blake2b(digest_size=16), shard.ids()
    lows, highs = [], []
    for start in range(0, len(ids), _BLOCK):
        block = np.array(ids[start : start + _BLOCK])
        digest.update(block.data)
        lows.append(int(block.min()))
        highs.append(int(block.max()))
    return digest.digest(), min(lows, default=0), max(highs, default=0)


def digests(files: Sequence[Path]) -> list[str]:
    """Of the bytes of some files of any kind, kept like `contents`."""
    whole = [Shard(path, "uint8", path.stat().st_size) for path in files]
    return [found.digest for found in contents(whole)]
