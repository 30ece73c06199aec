"""Files that a user asks for: only new files are written, none is overwritten."""

import os
from pathlib import Path
from typing import Any

from pipeline_local.errors import UserError
from pipeline_local.user_input.json_text import as_json


def problem(option: str, path: Path) -> str | None:
    """Returns why the file cannot be written; None if it and its missing folders can be.

    Args:
        option: the command-line option that names the file, for the message.
        path: the file to write.
    """
    try:
        path.lstat()
    except (FileNotFoundError, NotADirectoryError):
        pass  # what is to be made of it, its folders decide
    except OSError as error:  # a name that is too long
        return f"{option}: {path} cannot be written ({error.strerror}); name another"
    else:
        return f"{option}: {path} exists, and files are never overwritten; name another"
    parent = next(folder for folder in path.absolute().parents if os.path.exists(folder))
    if not (parent.is_dir() and os.access(parent, os.W_OK)):
        return f"{option}: {path} cannot be written, as {parent} is not writable; name another"
    return None


def check(option: str, path: Path) -> None:
    """Refuses a file that cannot be written, before any work is done for it; see `problem`.

    Raises:
        UserError: the file cannot be written.
    """
    if reason := problem(option, path):
        raise UserError(reason)


def write(option: str, path: Path, text: str) -> None:
    """Writes the file and its missing folders; never overwrites one that another process has made.

    Raises:
        UserError: the file exists or cannot be written.
    """
    check(option, path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("x", encoding="utf-8") as file:  # whatever the locale
            try:
                file.write(text)
                file.flush()
            except BaseException:  # half a file would never be overwritten
                path.unlink(missing_ok=True)
                raise
    except (OSError, UnicodeError) as error:
        raise UserError(f"{option}: {path} cannot be written ({error}); name another") from None


def write_json(option: str, path: Path, facts: Any) -> None:  # noqa: ANN401 (any JSON value)
    """Writes strict JSON into a new file; see `write`.

    Raises:
        UserError: the file exists or cannot be written.
    """
    write(option, path, as_json(facts, indent=2) + "\n")
