"""Files that a user asks for: new ones only, nothing is ever overwritten."""

import os
from pathlib import Path

from pipeline_local.errors import UserError


def problem(option: str, path: Path) -> str | None:
    """Why the file cannot be written; None if it can, its folders included.

    Args:
        option: of the command line that names the file, for the message.
        path: where it is to be.
    """
    if path.exists():
        return f"{option}: {path} exists, and files are never overwritten; name another"
    above = next(folder for folder in path.absolute().parents if folder.exists())
    if not (above.is_dir() and os.access(above, os.W_OK)):
        return f"{option}: {path} cannot be written, as {above} takes no files; name another"
    return None


def check(option: str, path: Path) -> None:
    """Before anything is spent; see `problem`.

    Raises:
        UserError: the file cannot be written.
    """
    if reason := problem(option, path):
        raise UserError(reason)


def write(option: str, path: Path, text: str) -> None:
    """Write it, its folders included; not over one that has come meanwhile either.

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
