"""Files that are there whole or not at all, at whichever moment the process is killed."""

import os
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path


def write(path: Path, parts: Iterable[bytes | memoryview]) -> None:
    """Write a file that appears whole, replaces what was there, and outlives a power cut.

    Raises:
        OSError: no room, no permission; nothing is left behind where that is possible.
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
            temporary.unlink()  # a full disk needs the room
        raise
    sync_folder(path.parent)


def write_text(path: Path, text: str) -> None:
    """Write a text file in UTF-8, as `write` does.

    Raises:
        OSError: no room, no permission.
    """
    write(path, [text.encode()])


def sync_folder(path: Path) -> None:
    """Let the names in a folder outlive a power cut."""
    folder = os.open(path, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)
