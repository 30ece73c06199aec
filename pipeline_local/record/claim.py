"""A claim on a folder: one run at a time uses it, of all hosts, processes and threads."""

import errno
import fcntl
import os
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

LOCK = ".lock"
"""The lock file, which names the process that uses the folder; empty when none does."""

_CLAIMED: set[Path] = set()
"""Folders that this process has claimed, as a file lock does not exclude its own process."""

_CLAIMING = threading.Lock()
"""Held while `_CLAIMED` is looked at and changed."""


class InUseError(Exception):
    """Another run uses the folder.

    Args:
        holder: which process of which host it is; empty where that is not known.
    """

    def __init__(self, holder: str) -> None:
        self.holder = holder
        super().__init__(holder)


@contextmanager
def claimed(path: Path) -> Iterator[None]:
    """Makes a folder, and locks it for the time of the context, also against runs on other hosts.

    The system releases the lock when the process ends, however it ends. On a file system without
    locks there is no protection.

    Raises:
        InUseError: another run uses the folder.
        OSError, ValueError: it cannot be written, or there can be no such path.
    """
    own = f"process {os.getpid()} on {socket.gethostname()}"
    path.mkdir(parents=True, exist_ok=True)
    folder = path.resolve()
    # only who has claimed it here may open the lock file: closing it anywhere in a process would
    # release the process's lock
    with _claimed_here(folder, own), _locked(folder, own):
        yield


@contextmanager
def _claimed_here(folder: Path, own: str) -> Iterator[None]:
    with _CLAIMING:
        if folder in _CLAIMED:
            raise InUseError(own)
        _CLAIMED.add(folder)
    try:
        yield
    finally:
        with _CLAIMING:
            _CLAIMED.remove(folder)


@contextmanager
def _locked(folder: Path, own: str) -> Iterator[None]:
    with (folder / LOCK).open("ab+", buffering=0) as lock:
        try:
            fcntl.lockf(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno in (errno.EACCES, errno.EAGAIN):
                lock.seek(0)
                raise InUseError(lock.read().decode(errors="replace")) from None
        try:
            _say_who(lock, own)
            yield
        finally:
            _say_who(lock, "")


def _say_who(lock: IO[bytes], holder: str) -> None:
    """Writes the holder into the lock file, for messages only; a full disk is no error."""
    with suppress(OSError):
        lock.truncate(0)
        lock.write(holder.encode())
