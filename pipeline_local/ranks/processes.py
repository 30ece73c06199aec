"""Processes of this host: what identifies a rank, and how to end one that cannot end itself."""

import os
import signal
from contextlib import suppress
from pathlib import Path
from typing import Any

_STOPPED = "Tt"


def identity() -> dict[str, Any]:
    """Returns host (boot and PID namespace), process number and start time of this process.

    No two processes have all of them in common.
    """
    return {"host": _host(), "pid": os.getpid(), "born": _stat(os.getpid())[1]}


def kill_stopped(process: dict[str, Any], silent: bool) -> None:
    """Kills a rank of this host that is suspended, or whose heartbeat is missing.

    It could not end itself, and its launcher would wait for it. Processes of other hosts, and those
    that only have the number of an earlier one, are left alone. So is one that ends meanwhile, and
    one of another user, which this process may not kill.

    Args:
        process: the identity of the rank's process.
        silent: whether its heartbeat is missing.
    """
    if not process.get("born") or process.get("host") != _host():
        return
    state, born = _stat(process["pid"])
    if born == process["born"] and (silent or state in _STOPPED):
        with suppress(ProcessLookupError, PermissionError):
            os.kill(process["pid"], signal.SIGKILL)


def _host() -> str:
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot}:{os.readlink('/proc/self/ns/pid')}"
    except OSError:
        return ""


def _stat(pid: int) -> tuple[str, str]:
    """Returns state and start time of a process, or two empty strings."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return "", ""
    fields = text.rpartition(")")[2].split()
    return fields[0], fields[19]


def busy() -> str:
    """Says that this host has other work, which threads that wait for each other suffer from.

    It is no reason for another default: weights are bit-identical at equal numbers of threads only.
    """
    with suppress(OSError):
        (load, *_), cores = os.getloadavg(), os.cpu_count() or 1
        if load >= cores / 2:
            return (
                f"; this host was busy in the last minute (load {load:.1f} on {cores} cores): if it"
                f" stays so, parallel.threads=1 is up to 5 times faster for small models"
            )
    return ""
