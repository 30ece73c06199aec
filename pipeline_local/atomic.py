"""Files that are complete or absent, at whichever moment the process is killed."""

import os
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path


def write(path: Path, parts: Iterable[bytes | memoryview]) -> None:
    """Writes a file that appears complete, replaces an earlier one, and survives a power cut.

    Raises:
        OSError: no space, no permission; nothing is left behind where that is possible.
    """
    temporary = path.with_suffix(".partial")
    try:
        with temporary.open("wb") as file:
            for part in parts:
                file.write(part)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError:
        with suppress(OSError):
            temporary.unlink()  # a full disk needs the space
        raise
    sync(path.parent)


def write_text(path: Path, text: str) -> None:
    """Writes a text file in UTF-8, as `write` does.

    Raises:
        OSError: no space, no permission.
    """
    write(path, [text.encode()])


def sync(path: Path) -> None:
    """Makes what a file holds, or the names in a folder, survive a power cut."""
    opened = os.open(path, os.O_RDONLY)
    try:
        os.fsync(opened)
    finally:
        os.close(opened)
