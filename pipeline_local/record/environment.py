"""Where a run has been started: versions, machine and device, one entry for each start."""

import json
import os
import platform
import socket
from contextlib import suppress
from datetime import datetime, timezone
from importlib import metadata
from pathlib import Path

import torch

from pipeline_local import __version__, atomic
from pipeline_local.user_input.json_text import Facts, as_json

_LIBRARIES = ("torchvision", "numpy", "transformers")


def facts(device: str) -> Facts:
    """Returns versions and what this rank computes on.

    Args:
        device: torch's type of its device.
    """
    return {
        "pipeline_local": __version__,
        "python": platform.python_version(),
        "torch": torch.__version__,  # with its build, such as +cu130
        **_versions(),
        "system": platform.platform(),
        "host": socket.gethostname(),
        "processor": _processor(),
        "cores": len(os.sched_getaffinity(0)),
        "threads": torch.get_num_threads(),
        "device": device,
        **({} if device == "cpu" else _accelerator(device)),
    }


def add(path: Path, step: int, ranks: int, device: str) -> None:
    """Adds the entry of a start to the file.

    Args:
        path: of the file, which need not exist yet.
        step: the optimizer steps that earlier starts have done.
        ranks: the number of ranks.
        device: torch's type of this rank's device.
    """
    started = datetime.now(timezone.utc).isoformat(timespec="milliseconds")
    entry = {"step": step, "started": started, "ranks": ranks, **facts(device)}
    atomic.write_text(path, as_json([*load(path), entry], indent=2) + "\n")


def load(path: Path) -> list[Facts]:
    """Returns the entries of all starts, oldest first; none of a file that is not as written."""
    with suppress(OSError, ValueError):
        entries = json.loads(path.read_text(encoding="utf-8"))
        if isinstance(entries, list) and all(isinstance(entry, dict) for entry in entries):
            return entries
    return []


def _versions() -> Facts:
    found = {}
    for name in _LIBRARIES:
        with suppress(metadata.PackageNotFoundError):
            found[name] = metadata.version(name)
    return found


def _processor() -> str:
    """The name of the processor, which Linux gives in a file only."""
    with suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.machine()


def _accelerator(device: str) -> Facts:
    found: Facts = {}
    with suppress(Exception):  # a driver that cannot say: the run must go on
        driver = torch.get_device_module(torch.device(device))
        found["device_name"] = str(driver.get_device_name())
        found["cuda"] = torch.version.cuda
    return found
