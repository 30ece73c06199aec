"""Files that a user asks for: only new files are written, none is overwritten."""

import os
from pathlib import Path

from pipeline_local.errors import UserError


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
        with path.open("x") as file:
            file.write(text)
    except OSError as error:
        raise UserError(f"{option}: {path} cannot be written ({error}); name another") from None
