"""A folder that appears whole or not at all, and whose making goes on where it was left."""

import errno
import fcntl
import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import IO, Any

from pipeline_local import atomic
from pipeline_local.console.screen import say
from pipeline_local.errors import UserError

_LOCK, _REQUEST = ".lock", "request.json"
_OWN = ".of-draft"
"""Ending of files that help to make the folder, and are not part of it."""


def own(folder: Path, name: str) -> Path:
    """A file in a draft that will not be in the finished folder."""
    return folder / f"{name}{_OWN}"


def make(output: Path, request: Mapping[str, Any], fill: Callable[[Path], None]) -> bool:
    """Make a folder by filling another one beside it, which is renamed in the end.

    Of two processes with the same folder the second one waits.

    Args:
        output: that must not exist; its missing parents are made.
        request: what is asked for, as JSON; a draft of another request is refused.
        fill: puts what is missing into the folder that it gets.

    Returns:
        Whether it was made here, and not by another process meanwhile.

    Raises:
        UserError: a draft of another request is there, or something cannot be written.
    """
    draft = output.with_name(f"{output.name}.partial")
    try:
        draft.mkdir(parents=True, exist_ok=True)
        with (draft / _LOCK).open("ab") as lock:
            _wait_for(lock, output)
            if output.exists():
                return False
            _claim(draft, request)
            fill(draft)
            for path in (draft / _LOCK, draft / _REQUEST, *draft.glob(f"*{_OWN}")):
                path.unlink(missing_ok=True)
            atomic.sync(draft)
            draft.rename(output)
            atomic.sync(output.parent)
            return True
    except OSError as error:
        raise UserError(
            f"{output} cannot be written ({error.strerror or error}); name another folder"
        ) from None


def write_json(path: Path, facts: Mapping[str, Any]) -> None:
    """Write a small file, whole or not at all."""
    temporary = path.with_name(f"{path.name}.new{_OWN}")
    with temporary.open("w", encoding="utf-8") as file:
        json.dump(facts, file, indent=1)
        file.write("\n")
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)


def _wait_for(lock: IO[bytes], output: Path) -> None:
    """On a file system without locks there is no protection."""
    try:
        fcntl.lockf(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in (errno.EACCES, errno.EAGAIN):
            say(f"waiting for another process that writes {output}")
            fcntl.lockf(lock, fcntl.LOCK_EX)


def _claim(draft: Path, request: Mapping[str, Any]) -> None:
    path = draft / _REQUEST
    if not path.is_file():
        write_json(path, request)
    elif json.loads(path.read_text()) != json.loads(json.dumps(request)):
        raise UserError(
            f"{draft} was begun from other texts or with other settings; remove it, or name another"
            f" folder"
        )
