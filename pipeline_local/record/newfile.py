"""Files that a user asks for: new ones only, nothing is ever overwritten."""

from pathlib import Path

from pipeline_local.errors import UserError


def refuse_existing(option: str, path: Path) -> None:
    """Before anything is spent.

    Args:
        option: of the command line that names the file, for the message.
        path: where it is to be.

    Raises:
        UserError: the file exists.
    """
    if path.exists():
        raise UserError(f"{option}: {path} exists, and files are never overwritten; name another")


def write(option: str, path: Path, text: str) -> None:
    """Write it, its folders included; not over one that has come meanwhile either.

    Raises:
        UserError: the file exists or cannot be written.
    """
    refuse_existing(option, path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("x") as file:
            file.write(text)
    except OSError as error:
        raise UserError(f"{option}: {path} cannot be written ({error}); name another") from None
