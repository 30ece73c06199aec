"""Peak memory of a piece of work: the device's allocator, or on a CPU a count of live storages."""

import contextlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from pipeline_local.memory.live_bytes import LiveBytes as LiveBytes  # public here too


class Footprint:
    """Peak memory of something that is made and then works, as a context around both.

    What is there before does not count; what making it leaves behind does, and what making it only
    passes through does not.

    Attributes:
        peak: bytes, by the device's allocator, or on a CPU by the count of live storages.
        resident: bytes by which the process grew at most, where Linux tells (on a CPU).

    Args:
        device: where it works.
    """

    def __init__(self, device: torch.device) -> None:
        self.peak = 0
        self.resident: int | None = None
        self._device = device
        self._live_bytes = LiveBytes()
        self._before = 0

    def __enter__(self) -> "Footprint":
        self._before = _status("VmRSS") or 0
        if self._device.type != "cpu":
            torch.accelerator.synchronize(self._device)
            self._before = torch.accelerator.memory_allocated(self._device)
        else:
            self._live_bytes.__enter__()  # type: ignore[no-untyped-call]
        return self

    def made(self) -> None:
        """From here on it works."""
        if self._device.type != "cpu":
            torch.accelerator.reset_peak_memory_stats(self._device)
            return
        self._live_bytes.peak = self._live_bytes.live
        _forget_resident_peak()

    def __exit__(self, *error: Any) -> None:  # noqa: ANN401 (as every context)
        if self._device.type != "cpu":
            torch.accelerator.synchronize(self._device)
            self.peak = torch.accelerator.max_memory_allocated(self._device) - self._before
            return
        self._live_bytes.__exit__(*error)  # type: ignore[no-untyped-call]
        self.peak = self._live_bytes.peak
        top = _status("VmHWM")
        self.resident = None if top is None else max(0, top - self._before)


def _status(name: str) -> int | None:
    """Bytes of a line of /proc/self/status; None where there is none."""
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
    except OSError:
        return None
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith(name)), None)


def _forget_resident_peak() -> None:
    """Where the system forbids it, the peak is that of the whole process so far."""
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


def peak_bytes(work: Callable[[], None], device: torch.device) -> int:
    """Most bytes that `work` holds at once, beyond what was there before it."""
    if device.type != "cpu":
        torch.accelerator.synchronize(device)
        before: int = torch.accelerator.memory_allocated(device)
        torch.accelerator.reset_peak_memory_stats(device)
        work()
        torch.accelerator.synchronize(device)
        peak: int = torch.accelerator.max_memory_allocated(device)
        return peak - before
    live_bytes = LiveBytes()
    with live_bytes:
        work()
    return live_bytes.peak
