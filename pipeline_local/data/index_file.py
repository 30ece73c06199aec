"""What it took long to find out about files, kept in the user's cache until a file changes."""

import hashlib
import os
import tempfile
from collections.abc import Iterable
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

_FORMAT = 2


def stamp(files: Iterable[str], *settings: str) -> str:
    """A name for these files as they are now: of their paths, sizes and times of change."""
    stats = [(os.path.realpath(file), os.stat(file)) for file in files]
    text = repr((_FORMAT, settings, [(path, s.st_size, s.st_mtime_ns) for path, s in stats]))
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()


def load(name: str) -> dict[str, Tensor] | None:
    """What was saved under this stamp; None if nothing intact is there."""
    try:
        return load_file(_path(name))
    except (OSError, SafetensorError):
        return None


def save(name: str, tensors: dict[str, Tensor]) -> None:
    """Keep tensors under a stamp, if the cache can be written: it is only a convenience."""
    try:
        _path(name).parent.mkdir(parents=True, exist_ok=True)
        number, draft = tempfile.mkstemp(dir=_path(name).parent)
        os.close(number)
        try:
            save_file(tensors, draft)
            os.replace(draft, _path(name))
        except BaseException:
            os.unlink(draft)
            raise
    except (OSError, SafetensorError):
        return


def cache() -> Path:
    """The user's cache folder for this package, which need not exist."""
    base = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    return Path(base) / "pipeline_local"


def _path(name: str) -> Path:
    return cache() / f"{name}.safetensors"
