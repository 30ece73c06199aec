"""The memory of this process that is resident."""

import resource
import sys
from pathlib import Path


def peak() -> int:
    """Returns the bytes of its peak.

    Linux lets `ru_maxrss` begin with the peak of the process that has started this one.
    """
    stated = status("VmHWM")
    if stated is not None:
        return stated
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def status(name: str) -> int | None:
    """Returns the bytes that a line of /proc/self/status states; None where there is no such."""
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
    except OSError:
        return None
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith(name)), None)
