"""Signals from the first instant on: before torch is loaded, and in a container's first process.

Imported before anything that loads slowly.
"""

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

STOP_SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)
"""Ask a run to stop. A launcher and a terminal send them to a rank's whole process group, Slurm to
every process; the rank then finishes its step, for which it needs its loaders."""

_noted: list[int] = []


def listen(trains: bool) -> None:
    """Note SIGUSR1, which asks for a checkpoint, until the run listens itself (`Stop.listen`).

    SIGTERM and SIGINT end a process that has nothing to save yet, as they end any other.

    Args:
        trains: whether the command trains; others end by SIGUSR1, too.
    """
    if trains:
        signal.signal(signal.SIGUSR1, note)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGUSR1})  # the launcher has held it


def note(number: int, _: FrameType | None) -> None:
    """Keep a signal for who listens later."""
    _noted.append(number)


def take() -> bool:
    """Return whether SIGUSR1 has come since the last call."""
    came = bool(_noted)
    _noted.clear()
    return came


@contextmanager
def held() -> Iterator[None]:
    """Processes that are started meanwhile get SIGUSR1 once they listen, and do not end by it."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGUSR1})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def run_under_init() -> None:
    """Go on in a child, where this is the first process of a container; it does what an init does.

    The kernel drops signals to a first process that has no handler for them. A child gets them, and
    ends by them; the first process passes them on, reaps orphans, and ends with the child's code.
    """
    if os.getpid() != 1:
        return
    every = signal.valid_signals()
    before = signal.pthread_sigmask(signal.SIG_BLOCK, every)
    child = os.fork()
    if child == 0:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
        return
    while True:
        received = signal.sigwaitinfo(every)
        if received.si_signo == signal.SIGCHLD:
            _reap(child)
        elif received.si_code <= _SENT:  # what a terminal sends, the child gets itself
            os.kill(child, received.si_signo)


_SENT = 0
"""SI_USER: signals that a process has sent have this code or a lower one, the kernel's a higher."""


def _reap(child: int) -> None:
    """Forget processes that have ended, and end with the child."""
    while (ended := os.waitpid(-1, os.WNOHANG))[0]:
        if ended[0] == child:
            code = os.waitstatus_to_exitcode(ended[1])
            os._exit(code if code >= 0 else 128 - code)
