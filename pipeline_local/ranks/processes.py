"""Processes of this host: who a rank is, and how to end one that cannot end itself."""

import os
import signal
from pathlib import Path
from typing import Any

_STOPPED = "Tt"


def identity() -> dict[str, Any]:
    """Host (boot and PID namespace), process number and start time: no two processes share them."""
    return {"host": _host(), "pid": os.getpid(), "born": _stat(os.getpid())[1]}


def kill_stopped(process: dict[str, Any], silent: bool) -> None:
    """Kill a rank of this host that is stopped, or that has given no sign of life.

    It could not end itself, and its launcher would wait for it. Processes of other hosts, and those
    that only have the number of an earlier one, are left alone.

    Args:
        process: its identity.
        silent: its heartbeat is missing.
    """
    if not process.get("born") or process.get("host") != _host():
        return
    state, born = _stat(process["pid"])
    if born == process["born"] and (silent or state in _STOPPED):
        os.kill(process["pid"], signal.SIGKILL)


def _host() -> str:
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot}:{os.readlink('/proc/self/ns/pid')}"
    except OSError:
        return ""


def _stat(pid: int) -> tuple[str, str]:
    """State and start time, or two empty strings."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return "", ""
    fields = text.rpartition(")")[2].split()
    return fields[0], fields[19]
