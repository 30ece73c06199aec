"""No orphans: a rank ends with the launcher that started it, however that one ends.

Imported before anything that loads slowly, as an earlier end of the launcher would go unnoticed.
"""

import ctypes
import os
import signal

LAUNCHER = "PIPELINE_LOCAL_LAUNCHER"
"""The environment variable with the process number of the built-in launcher."""

LAUNCHERS = (LAUNCHER, "TORCHELASTIC_RUN_ID", "LOCAL_SIZE")
"""Variables that are set by launchers that wait for their ranks: ours, torchrun, deepspeed."""

_PR_SET_PDEATHSIG = 1


def end_with_launcher() -> None:
    """Makes the kernel kill this process when its parent dies, if the parent is a launcher.

    A rank that was started by hand goes on without its shell. Linux only; elsewhere no effect.
    """
    if not any(name in os.environ for name in LAUNCHERS):
        return
    try:
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    except (OSError, AttributeError):
        return
    launcher = os.environ.get(LAUNCHER)
    if launcher is not None and launcher != str(os.getppid()):
        os._exit(1)  # the launcher is gone already
