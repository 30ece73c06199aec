"""Loader processes: where they come from, what they ignore and when they end.

They come from a fork server: a rank has threads (gloo, NCCL, its store) and perhaps a CUDA context,
which a plain fork would copy in a broken state, while a spawned process would import torch again
for every evaluation.
"""

import multiprocessing
import os
import shutil
import signal
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from multiprocessing import forkserver, process, resource_tracker, util
from pathlib import Path
from typing import Any

from pipeline_local.process.early import STOP_SIGNALS


def start_server(preload: list[str]) -> None:
    """Start the fork server, deaf to `STOP_SIGNALS` like all that it forks.

    Args:
        preload: modules, imported by the server once, so that each loader has them (and torch).
    """
    multiprocessing.set_forkserver_preload(preload)
    _make_socket_folder()
    with _safe_path():
        resource_tracker.ensure_running()  # first: it would unblock SIGTERM
        earlier = signal.pthread_sigmask(signal.SIG_BLOCK, STOP_SIGNALS)  # inherited
        try:
            forkserver.ensure_running()
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, earlier)


@contextmanager
def server_ended() -> Iterator[None]:
    """A fork server that is started meanwhile ends with the context, and its folder goes.

    Left to the caller, it would make processes that are deaf to `STOP_SIGNALS`.
    """
    server: Any = forkserver._forkserver
    config = _process_config()
    folder, preload = config.get("tempdir"), server._preload_modules
    is_callers = server._forkserver_pid is not None
    try:
        yield
    finally:
        server._preload_modules = preload
        if not is_callers:
            server._stop()
            if (made := config.get("tempdir")) not in (None, folder):
                shutil.rmtree(made, ignore_errors=True)
                config["tempdir"] = folder


@contextmanager
def socket_folder() -> Iterator[str | None]:
    """A folder for the sockets of ranks that are started meanwhile, as `SOCKETS` tells them. One
    that is killed could not remove its own. None where no folder can be made."""
    try:
        folder = tempfile.TemporaryDirectory(
            prefix="pipeline_local-", dir=_base(), ignore_cleanup_errors=True
        )
    except OSError:
        yield None
        return
    with folder as path:
        yield path


def _make_socket_folder() -> None:
    """Make the folder of multiprocessing's sockets, as it would itself but for its place."""
    config = _process_config()
    if not config.get("tempdir"):
        base = os.environ.get(SOCKETS)
        config["tempdir"] = tempfile.mkdtemp(prefix="pymp-", dir=base or _base())
        _made[os.getpid()] = config["tempdir"]
        util.Finalize(None, shutil.rmtree, args=(config["tempdir"], True), exitpriority=-100)


def remove_socket_folder() -> None:
    """Before this process ends without Python's own end. A forked process leaves its parent's."""
    if folder := _made.pop(os.getpid(), None):
        shutil.rmtree(folder, ignore_errors=True)


_made: dict[int, str] = {}
"""The folder that a process has made, by its number."""


def drop_empty_caches() -> None:
    """Remove the folder that torch makes in TMPDIR for its compiler, where nothing was compiled."""
    with suppress(OSError):
        for folder in Path(tempfile.gettempdir()).glob("torchinductor_*"):
            with suppress(OSError):
                folder.rmdir()  # only one that is empty


def _base() -> str:
    """TMPDIR, or a folder with a shorter name: the system limits addresses of sockets in length."""
    usual = tempfile.gettempdir()
    longest = "/pipeline_local-12345678/pymp-12345678/listener-12345678"
    if len(os.fsencode(usual + longest)) <= _LONGEST_ADDRESS:
        return usual
    return next(filter(_writable, _SHORT_FOLDERS), usual)


def _writable(folder: str) -> bool:
    return Path(folder).is_dir() and os.access(folder, os.W_OK | os.X_OK)


SOCKETS = "PIPELINE_LOCAL_SOCKETS"
"""The environment variable with the launcher's folder for the sockets of its ranks."""
_LONGEST_ADDRESS = 107
"""Bytes of the path of a Unix socket on Linux."""
_SHORT_FOLDERS = ("/tmp", "/var/tmp", "/dev/shm")


def _process_config() -> dict[str, Any]:
    config: dict[str, Any] = process.current_process()._config  # type: ignore[attr-defined]
    return config


@contextmanager
def _safe_path() -> Iterator[None]:
    """Python processes that are started meanwhile do not look for modules in the current folder:
    a script named like one of the library's (random.py) would be taken for it."""
    before = os.environ.get(_SAFE_PATH)
    os.environ[_SAFE_PATH] = "1"
    try:
        yield
    finally:
        if before is None:
            del os.environ[_SAFE_PATH]
        else:
            os.environ[_SAFE_PATH] = before


_SAFE_PATH = "PYTHONSAFEPATH"
"""Python reads it from 3.11 on."""


def obey_rank_only(worker: int) -> None:
    """Make this loader process end with its rank or at its rank's order, and for nobody else.

    A killed rank would leave it behind, as its parent in the system is the fork server.
    """
    signal.pthread_sigmask(signal.SIG_BLOCK, STOP_SIGNALS)
    for target in (_wait_for_end, _wait_for_order):
        threading.Thread(target=target, daemon=True).start()


def _wait_for_end() -> None:
    rank = multiprocessing.parent_process()
    assert rank is not None
    rank.join()
    os._exit(1)


def _wait_for_order() -> None:
    rank = multiprocessing.parent_process()
    assert rank is not None
    while True:
        received = signal.sigwaitinfo(STOP_SIGNALS)
        if received.si_signo == signal.SIGTERM and received.si_pid == rank.pid:
            os._exit(1)
