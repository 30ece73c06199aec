"""Lines of metrics files, as they are read; without torch, for processes that need nothing else."""

import json
import os
from pathlib import Path
from typing import Any


def read(line: str | bytes) -> dict[str, Any] | None:
    """Returns the facts of a line of a metrics file; None of one that was cut off with its run."""
    try:
        facts: dict[str, Any] = json.loads(line)
    except ValueError:
        return None
    return facts


def is_torn(path: Path) -> bool:
    """Returns whether the last line of a file was cut off, as by a full disk."""
    with path.open("rb") as file:
        size = file.seek(0, os.SEEK_END)
        file.seek(max(0, size - 1))
        return file.read(1) not in (b"", b"\n")
