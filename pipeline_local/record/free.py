"""A folder for a run that names none."""

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from itertools import count
from pathlib import Path

from pipeline_local.errors import UserError

FREE = Path("runs/fit-*")
"""Stands for the first free one of runs/fit, runs/fit-2 and so on."""


@contextmanager
def reserved() -> Iterator[Path]:
    """Makes the folder that `FREE` stands for, so that no other run finds it free. At the end it is
    removed if nothing is in it, as of a run that was refused.

    Raises:
        UserError: it cannot be made.
    """
    names = (Path("runs", f"fit-{n}" if n > 1 else "fit") for n in count(1))
    try:
        Path("runs").mkdir(exist_ok=True)
        folder = next(name for name in names if _is_made(name))
    except OSError as error:
        raise UserError(f"run.dir: runs cannot be written ({error.strerror}); name one") from None
    place = folder.absolute()
    try:
        yield folder
    finally:
        with suppress(OSError):
            place.rmdir()


def _is_made(path: Path) -> bool:
    """Makes a folder; says whether there was nothing before."""
    try:
        path.mkdir()
    except FileExistsError:
        return False
    return True
