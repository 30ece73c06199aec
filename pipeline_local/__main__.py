"""`pipeline-local` and `python -m pipeline_local`: what comes before torch is loaded, and last."""

import atexit
import os
import sys
import tempfile
import threading
from contextlib import suppress
from typing import NoReturn

if __name__ == "__main__":  # the current folder comes last: a script may be named as a library's
    _FOLDER = os.path.dirname(os.path.abspath(__file__))
    if sys.path[0] == (
        os.getcwd() if __package__ else _FOLDER
    ):  # as -m, or the launcher, starts it
        sys.path.pop(0)
    sys.path.append(os.getcwd() if __package__ else os.path.dirname(_FOLDER))

from pipeline_local.errors import EXIT_STOPPED
from pipeline_local.process import early
from pipeline_local.ranks import environment
from pipeline_local.ranks.orphan import LAUNCHER, end_with_launcher

TRAINING = ("train", "resume", "call", "hosts")
"""Commands that save when they are asked to stop. `fit` and launch/multinode.sh use the last."""
_SPINS = "10000"
"""Turns of an OpenMP thread that waits for others, before it sleeps (GOMP_SPINCOUNT). Costs nothing
on idle cores. By its own default it turns so long that, where others compute on the same cores, it
keeps the very thread it waits for from running: steps took 94 times as long, now 12 times
(docs/results/speed.md)."""


LAST_SECONDS = 5.0
"""Longest time that threads and exit functions may take once a run has failed."""


def program() -> int:
    """Run the command of this process, which is no other program's: the last thing that it does."""
    early.listen(trains())
    early.run_under_init()
    try:
        code = main()
    except Exception:
        if not trains():
            raise
        sys.excepthook(*sys.exc_info())
        code = 1
    if trains():
        leave(code)
    return code


def trains() -> bool:
    """Whether the command trains; help does not."""
    return sys.argv[1:2] != [] and sys.argv[1] in TRAINING and not {"-h", "--help"} & {*sys.argv}


def leave(code: int) -> NoReturn:
    """End at once. Python would first take torch apart: seconds that a container is not given.

    After a failure a thread may wait for a device that itself waits for a rank that is gone.
    """
    if code not in (0, EXIT_STOPPED) and environment.launched():
        overdue = threading.Timer(LAST_SECONDS, os._exit, (code,))
        overdue.daemon = True
        overdue.start()
    threading._shutdown()  # type: ignore[attr-defined]  # a callback's own threads end first
    atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError, AttributeError, ValueError):  # nobody listens
            stream.flush()
    os._exit(code)


def main() -> int:
    """Run one command, and give its exit code."""
    open_what_is_closed()
    end_with_launcher()
    spin_briefly()
    leave_out_stacks()
    try:
        tempfile.gettempdir()  # torch asks for it as it is loaded, and would show a traceback
    except FileNotFoundError as error:
        print(f"error: {error.strerror}; name one in TMPDIR that can be written", file=sys.stderr)
        return 2
    try:
        from pipeline_local.commandline.parser import parse

        options, arguments = parse(sys.argv[1:])  # help and mistakes of usage end here
        announce(options.run)
        import torch  # noqa: F401 (alone, as it takes most of the time)

        from pipeline_local.console import startup

        startup.at("loading the rest")
        from pipeline_local import cli

        return cli.run(options, arguments)
    except KeyboardInterrupt:  # while torch is loaded
        return 130


def announce(command: str) -> None:
    """Say what the next seconds are spent on, where a run starts: in the user's process, and in the
    first of the ranks that it starts."""
    from pipeline_local.commandline.parser import CALL
    from pipeline_local.console import startup

    if environment.is_first() and command in ("train", "resume", CALL):
        if LAUNCHER in os.environ:
            startup.begin("rank 0", startup.SILENCE_OF_RANKS)
        else:
            startup.begin(command, startup.SILENCE)
        startup.at("loading torch")


def open_what_is_closed() -> None:
    """A daemon's stdin, stdout and stderr may be closed (`>&-`): else the next file that is opened
    would take their number, and python has nothing to print to."""
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:  # the lowest number that is free is its own
            nowhere = os.open(os.devnull, os.O_RDWR)
            os.set_inheritable(nowhere, True)
            setattr(sys, name, os.fdopen(nowhere, mode))


def spin_briefly() -> None:
    """Let OpenMP's threads wait for each other asleep, unless the user has said how."""
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", _SPINS)


def leave_out_stacks() -> None:
    """Torch's C++ warns of each connection that ends, with stacks of its own, unless the user asks
    for them. Whoever notices such an end says so in a line."""
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")


if __name__ == "__main__":
    raise SystemExit(program())
