"""Loader processes: where they come from, what they ignore and when they end.

They come from a fork server: a rank has threads (gloo, NCCL, its store) and perhaps a CUDA context,
which a plain fork would copy in a broken state, while a spawned process would import torch again
for every evaluation.
"""

import multiprocessing
import os
import signal
import threading
from multiprocessing import forkserver, resource_tracker

STOP_SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)
"""Ask a run to stop. A launcher and a terminal send them to a rank's whole process group, Slurm to
every process; the rank then finishes its step, for which it needs its loaders."""


def start_server(preload: str) -> None:
    """Start the fork server, deaf to `STOP_SIGNALS` like all that it forks.

    Args:
        preload: a module, imported by the server once, so that each loader has it (and torch).
    """
    multiprocessing.set_forkserver_preload([preload])
    resource_tracker.ensure_running()  # first: it would unblock SIGTERM
    earlier = signal.pthread_sigmask(signal.SIG_BLOCK, STOP_SIGNALS)  # inherited; nothing is lost
    try:
        forkserver.ensure_running()
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, earlier)


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
