"""No orphans: a rank ends with the launcher that started it, however that one ends.

Imported before anything heavy, so that hardly a moment is left in which the launcher's end would
go unnoticed.
"""

import ctypes
import os
import signal

LAUNCHER = "PIPELINE_LOCAL_LAUNCHER"
"""The built-in launcher puts its process number here."""

LAUNCHERS = (LAUNCHER, "TORCHELASTIC_RUN_ID", "LOCAL_SIZE")
"""Set by launchers that wait for their ranks: ours, torchrun, deepspeed."""

_PR_SET_PDEATHSIG = 1


def end_with_launcher() -> None:
    """Let the kernel kill this process when its parent dies, if the parent is a launcher.

    A rank that somebody started by hand goes on without its shell. Linux only; elsewhere nothing.
    """
    if not any(name in os.environ for name in LAUNCHERS):
        return
    try:
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    except (OSError, AttributeError):
        return
    launcher = os.environ.get(LAUNCHER)
    if launcher is not None and launcher != str(os.getppid()):
        os._exit(1)  # it was gone already
