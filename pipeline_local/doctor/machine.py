"""Checks of this machine, as this process sees it: processors, memory, disks, limits."""

import os
import resource
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from pipeline_local.doctor import cgroup
from pipeline_local.doctor.finding import Finding, passed, warned

SHARED_MEMORY = Path("/dev/shm")
MEMORY = Path("/proc/meminfo")
INFINIBAND = Path("/sys/class/infiniband")
_GIB, _MIB = 2**30, 2**20
_LEAST_SHARED = 256 * _MIB
"""Docker gives 64 MiB. Loader processes pass batches through it, and nccl has buffers there."""
_LEAST_MEMORY = 2 * _GIB
"""Two ranks with torch and a small model, and their loaders."""
_LEAST_DISK = _GIB
_LEAST_FILES, _LEAST_PROCESSES = 1024, 1024


def processors() -> Iterator[Finding]:
    """How many CPUs this process may use; ranks share them by their number."""
    seen, allowed = len(os.sched_getaffinity(0)), cgroup.processors()
    values = {"seen": seen, "allowed": allowed, "host": os.cpu_count()}
    if allowed is not None and allowed < seen:
        found = f"{seen} CPUs are seen, but the container may keep only {allowed:g} busy"
        remedy = f"set parallel.threads, or docker's --cpuset-cpus=0-{max(0, int(allowed) - 1)}"
        yield warned(found, remedy, **values)
    else:
        yield passed(f"{seen} of {os.cpu_count()} CPUs", **values)


def threads() -> Iterator[Finding]:
    """Variables of OpenMP that slow several ranks down. A run sets its threads itself."""
    count = os.environ.get("OMP_NUM_THREADS", "")
    found = list(_odd_variables(count))
    yield from found
    if not found:
        yield passed(f"OMP_NUM_THREADS={count}" if count else "OMP_NUM_THREADS is not set")


def _odd_variables(count: str) -> Iterator[Finding]:
    cpus = len(os.sched_getaffinity(0))
    if count and not count.split(",")[0].strip().isdecimal():
        yield warned(f"OMP_NUM_THREADS={count!r} is no number", "unset it")
    elif count and int(count.split(",")[0]) > cpus:
        yield warned(f"OMP_NUM_THREADS={count}, but there are {cpus} CPUs", "lower or unset it")
    if os.environ.get("OMP_WAIT_POLICY", "").lower() == "active":
        yield warned("OMP_WAIT_POLICY=active: waiting threads take the CPUs of others", "unset it")
    for name in ("GOMP_CPU_AFFINITY", "KMP_AFFINITY", "OMP_PLACES"):
        if name in os.environ:
            yield warned(f"{name} may bind all ranks to the same CPUs", "unset it")


def memory() -> Iterator[Finding]:
    """What is free of this host's memory, and of that of the container."""
    facts = dict(line.split(":") for line in MEMORY.read_text().splitlines() if ":" in line)
    total, free = (1024 * int(facts[name].split()[0]) for name in ("MemTotal", "MemAvailable"))
    whose = "the host"
    limited = cgroup.memory()
    if limited is not None and limited[1] < free:
        (total, free), whose = limited, "the container"
    found, values = f"{_size(free)} of {_size(total)} are free", {"total": total, "free": free}
    if free < _LEAST_MEMORY:
        remedy = f"end other programs or give {whose} more memory"
        yield warned(f"{found}, two ranks need {_size(_LEAST_MEMORY)}", remedy, **values)
    else:
        yield passed(f"{found} ({whose})", **values)


def shared_memory() -> Iterator[Finding]:
    """The size of /dev/shm, through which processes pass tensors."""
    if not SHARED_MEMORY.is_dir():
        remedy = "mount a tmpfs there, or set data.workers=0"
        yield warned(f"there is no {SHARED_MEMORY}", remedy)
        return
    total, _, free = shutil.disk_usage(SHARED_MEMORY)
    found = f"{_size(free)} of {_size(total)} are free in {SHARED_MEMORY}"
    values = {"total": total, "free": free}
    if free < _LEAST_SHARED:
        remedy = "start the container with --shm-size=2g or --ipc=host, or empty the folder"
        yield warned(found, remedy, **values)
    else:
        yield passed(found, **values)


def limits() -> Iterator[Finding]:
    """Limits of open files, processes and locked memory."""
    files, processes, locked = (
        resource.getrlimit(kind)[0]
        for kind in (resource.RLIMIT_NOFILE, resource.RLIMIT_NPROC, resource.RLIMIT_MEMLOCK)
    )
    values = {"files": files, "processes": processes, "locked_memory": locked}
    found = list(_low_limits(files, processes, locked))
    yield from (warned(text, remedy, **values) for text, remedy in found)
    if not found:
        shown = f"{_count(files)} open files, {_count(processes)} processes"
        yield passed(f"{shown}, {_size(locked)} of locked memory", **values)


def _low_limits(files: int, processes: int, locked: int) -> Iterator[tuple[str, str]]:
    """What is low, and what to do; -1 is no limit."""
    if 0 <= files < _LEAST_FILES:
        yield f"{files} open files are allowed", f"ulimit -n {_LEAST_FILES}, or more"
    if 0 <= processes < _LEAST_PROCESSES:
        found = f"{processes} processes and threads are allowed"
        yield found, f"ulimit -u {_LEAST_PROCESSES}, or more"
    if locked >= 0 and INFINIBAND.is_dir() and any(INFINIBAND.iterdir()):
        found = f"{_size(locked)} of locked memory are allowed, and InfiniBand needs more"
        yield found, "ulimit -l unlimited (docker: --ulimit memlock=-1)"


def disk() -> Iterator[Finding]:
    """Whether the current folder, where runs go, and the temporary one can be written."""
    yield _folder(Path.cwd(), "the current folder", "set run.dir to a folder of yours")
    asked = os.environ.get("TMPDIR", "")
    used = tempfile.gettempdir()
    if asked and not os.path.samefile(asked if os.path.isdir(asked) else os.sep, used):
        yield warned(f"TMPDIR={asked} cannot be written, {used} is taken", "unset or correct it")
    yield _folder(Path(used), "the temporary folder", "name another one in TMPDIR")


def _folder(folder: Path, what: str, remedy: str) -> Finding:
    try:
        with tempfile.TemporaryFile(dir=folder) as file:
            file.write(b"0" * 4096)
    except OSError as error:
        return warned(f"{what} {folder} cannot be written ({error.strerror})", remedy)
    free = shutil.disk_usage(folder).free
    found = f"{what} has {_size(free)} free"
    if free < _LEAST_DISK:
        return warned(found, f"remove files, or {remedy}", free=free)
    return passed(found, free=free)


def _size(number: int) -> str:
    if number < 0:
        return "any amount"
    return f"{number / _GIB:.1f} GiB" if number >= _GIB else f"{number / _MIB:.0f} MiB"


def _count(number: int) -> str:
    return "any number of" if number < 0 else str(number)
