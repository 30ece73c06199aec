"""What control groups (version 1 or 2) leave to this process: a container's CPUs and memory."""

from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

ROOT = Path("/sys/fs/cgroup")
OWN = Path("/proc/self/cgroup")
_NO_LIMIT = 2**60
"""Version 1 has no word for it, but the largest number of pages."""


def processors() -> float | None:
    """Return how many CPUs may be busy at once; None without a limit."""
    limits = []
    for folder in _folders("cpu"):
        quota, _, period = _text(folder / "cpu.max").partition(" ")
        quota = quota or _text(folder / "cpu.cfs_quota_us")
        period = period or _text(folder / "cpu.cfs_period_us")
        if quota.isdecimal() and period.isdecimal():  # neither max nor -1
            limits.append(int(quota) / int(period))
    return min(limits, default=None)


def memory() -> tuple[int, int] | None:
    """Return (limit, free) in bytes, of the group with the least that is free; None: no limit.

    Pages of files count as free if they have not been used for a while, as they are dropped first.
    """
    found = []
    for folder in _folders("memory"):
        limit = _text(folder / "memory.max") or _text(folder / "memory.limit_in_bytes")
        used = _text(folder / "memory.current") or _text(folder / "memory.usage_in_bytes")
        if limit.isdecimal() and used.isdecimal() and int(limit) < _NO_LIMIT:
            free = int(limit) - int(used) + _droppable(folder)
            found.append((int(limit), min(free, int(limit))))
    return min(found, key=lambda pair: pair[1], default=None)


def _droppable(folder: Path) -> int:
    lines = _text(folder / "memory.stat").splitlines()
    facts = dict(line.split(maxsplit=1) for line in lines if " " in line)
    return int(facts.get("total_inactive_file", facts.get("inactive_file", 0)))


def _folders(controller: str) -> Iterator[Path]:
    """The groups that limit this process, its own first. A container may see only the last one."""
    for line in _text(OWN).splitlines():
        _, controllers, own = line.split(":", 2)
        if controllers and controller not in controllers.split(","):
            continue
        root = ROOT / controller if controllers else ROOT
        inner = root / own.lstrip("/")
        yield from (folder for folder in (inner, *inner.parents) if folder.is_relative_to(root))


def _text(path: Path) -> str:
    with suppress(OSError):
        return path.read_text().strip()
    return ""
