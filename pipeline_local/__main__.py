"""`pipeline-local` and `python -m pipeline_local`: what comes before torch is loaded."""

import os
import sys

_FOLDER = os.path.dirname(os.path.abspath(__file__))
"""The package. The launcher starts its ranks by this file's path; then the package's own modules
are not to be found by their short names, and the package may be on no path at all."""
if not __package__:
    sys.path[:] = [path for path in sys.path if path != _FOLDER]
    sys.path += [] if os.path.dirname(_FOLDER) in sys.path else [os.path.dirname(_FOLDER)]
elif sys.path[0] in ("", os.getcwd()):  # python -m: a script there may be named like a library's
    sys.path.append(sys.path.pop(0))

from pipeline_local.ranks.orphan import end_with_launcher

_SPINS = "10000"
"""Turns of an OpenMP thread that waits for others, before it sleeps (GOMP_SPINCOUNT). Costs nothing
on idle cores. By its own default it turns so long that, where others compute on the same cores, it
keeps the very thread it waits for from running: steps took 94 times as long, now 12 times
(docs/results/speed.md)."""


def main() -> int:
    """Run one command, and give its exit code."""
    open_what_is_closed()
    end_with_launcher()
    spin_briefly()
    try:
        from pipeline_local import cli

        return cli.main()
    except KeyboardInterrupt:  # while torch is loaded
        return 130


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


if __name__ == "__main__":
    raise SystemExit(main())
