"""A sealed file: safetensors with a checksum over every byte of it, kept in its own header.

One file, one rename: it is complete or absent, and no second file can disagree with it. The
checksum is computed with zeros in its own place, so it covers the header, the names, the padding
and anything that is appended, as well as the tensors. Nothing in it depends on when, where or by
which rank it was written. Any reader of safetensors reads it.
"""

import hashlib
import json
import os
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from pipeline_local import atomic
from pipeline_local.errors import UserError

DTYPES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.int16: "I16",
    torch.int8: "I8",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}
"""All dtypes of tensors in a file, with their names there."""
_BLANK = b"0" * 64
_SEAL = re.compile(rb'"blake2b":"([0-9a-f]{64})"')
_CHUNK = 1 << 20


class BrokenSealError(Exception):
    """A file is not as it was written. The message continues "FILE ...", as in "is missing"."""


def write(path: Path, tensors: Mapping[str, Tensor], facts: Mapping[str, str]) -> None:
    """Writes CPU tensors; the file appears complete or not at all, and survives a power cut.

    It makes no copy of the tensors, and lets other threads run while it hashes and writes.

    Args:
        path: the file; replaced if it exists.
        tensors: contiguous tensors on the CPU.
        facts: strings for the header, beside the checksum.

    Raises:
        OSError: no space, no permission; nothing is left behind where that is possible.
    """
    names = sorted(tensors, key=lambda name: (-tensors[name].element_size(), name))  # aligned
    head = _head({name: tensors[name] for name in names}, facts)
    parts = [_bytes(tensors[name]) for name in names]
    seal = hashlib.blake2b(head, digest_size=32)
    for part in parts:
        seal.update(part)
    atomic.write(path, [head.replace(_BLANK, seal.hexdigest().encode(), 1), *parts])


def verify(path: Path) -> dict[str, str]:
    """Reads the file once, in small pieces, checks its checksum and returns its facts.

    Raises:
        BrokenSealError: it is missing, cut off or altered.
        UserError: it cannot be read, whatever is in it.
    """
    with reading(path), path.open("rb") as file:
        length = file.read(8)
        header = file.read(min(int.from_bytes(length, "little"), os.fstat(file.fileno()).st_size))
        found = _SEAL.search(header)
        if found is None:
            raise BrokenSealError("is cut off or overwritten: it has no checksum")
        blank = header[: found.start(1)] + _BLANK + header[found.end(1) :]
        seal = hashlib.blake2b(length + blank, digest_size=32)
        while chunk := file.read(_CHUNK):
            seal.update(chunk)
    if seal.hexdigest().encode() != found.group(1):
        raise BrokenSealError("does not match its checksum: it is cut off or altered")
    facts: dict[str, str] = json.loads(header)["__metadata__"]
    return facts


def read(path: Path) -> dict[str, Tensor]:
    """Verifies a file and returns its tensors, in memory of their own, not mapped from the file.

    Mapped tensors may have any alignment, and the order in which matrix products add up depends on
    it: a resumed run would differ in the last bits.

    Raises:
        BrokenSealError: it is missing, cut off or altered.
        UserError: it cannot be read, whatever is in it.
    """
    verify(path)
    try:
        with reading(path), safe_open(path, framework="pt") as file:
            return {name: file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118
    except SafetensorError as error:
        raise BrokenSealError(f"cannot be read ({error})") from None


def facts(path: Path) -> dict[str, str]:
    """Returns the facts in a file's header; reads and verifies nothing else.

    Raises:
        BrokenSealError: it is missing, or no such file.
        UserError: it cannot be read, whatever is in it.
    """
    try:
        with reading(path), safe_open(path, framework="pt") as file:
            found: dict[str, str] = file.metadata() or {}
            return found
    except SafetensorError as error:
        raise BrokenSealError(f"cannot be read ({error})") from None


@contextmanager
def reading(path: Path) -> Iterator[None]:
    """A context that tells a file that is damaged from one that cannot be read now: for a lack of
    permissions or a failing disk nobody may go on from an earlier one.

    Raises:
        BrokenSealError: nothing is there, or something that is no file.
        UserError: it cannot be read.
    """
    try:
        yield
    except FileNotFoundError:
        raise BrokenSealError("is missing") from None
    except (IsADirectoryError, NotADirectoryError) as error:
        raise BrokenSealError(f"cannot be read ({error.strerror})") from None
    except OSError as error:
        raise UserError(
            f"checkpoint {path} cannot be read ({error.strerror or error}); mend that and start"
            f" again, or move it away, to fall back to an earlier checkpoint"
        ) from None


def _head(tensors: Mapping[str, Tensor], facts: Mapping[str, str]) -> bytes:
    """Returns length and header in safetensors' format, with zeros for the checksum."""
    header: dict[str, Any] = {"__metadata__": {"blake2b": _BLANK.decode(), **facts}}
    begin = 0
    for name, tensor in tensors.items():
        end = begin + tensor.nbytes
        shape, dtype = list(tensor.shape), DTYPES[tensor.dtype]
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}
        begin = end
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text


def _bytes(tensor: Tensor) -> memoryview:
    return tensor.detach().reshape(-1).view(torch.uint8).numpy().data
