"""Peak memory of a piece of work: the device's allocator, or a count of live storages on a CPU."""

import contextlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from pipeline_local.memory.live_bytes import LiveBytes
from pipeline_local.record import resident


class Footprint:
    """A context that measures peak memory around a setup phase and a work phase.

    Memory that was allocated before does not count. Memory that the setup leaves allocated counts;
    temporaries of the setup do not.

    Attributes:
        peak: bytes, by the device's allocator, or by a count of live storages on a CPU.
        resident: most bytes by which the process grew; None on a GPU and where /proc is missing.

    Args:
        device: where the work runs.
    """

    def __init__(self, device: torch.device) -> None:
        self.peak = 0
        self.resident: int | None = None
        self._device = device
        self._live_bytes = LiveBytes()
        self._before = 0

    def __enter__(self) -> "Footprint":
        self._before = resident.status("VmRSS") or 0
        if self._device.type != "cpu":
            torch.accelerator.synchronize(self._device)
            self._before = torch.accelerator.memory_allocated(self._device)
        else:
            self._live_bytes.__enter__()  # type: ignore[no-untyped-call]
        return self

    def made(self) -> None:
        """Mark the end of the setup phase: temporaries so far are forgotten."""
        if self._device.type != "cpu":
            torch.accelerator.reset_peak_memory_stats(self._device)
            return
        self._live_bytes.peak = self._live_bytes.live
        _forget_resident_peak()

    def __exit__(self, *error: Any) -> None:  # noqa: ANN401 (any context)
        if self._device.type != "cpu":
            torch.accelerator.synchronize(self._device)
            self.peak = torch.accelerator.max_memory_allocated(self._device) - self._before
            return
        self._live_bytes.__exit__(*error)  # type: ignore[no-untyped-call]
        self.peak = self._live_bytes.peak
        top = resident.status("VmHWM")
        self.resident = None if top is None else max(0, top - self._before)


def _forget_resident_peak() -> None:
    """Reset the process's peak. Where this is forbidden, the peak of its whole life remains."""
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


def peak_bytes(work: Callable[[], None], device: torch.device) -> int:
    """Return the most bytes that `work` allocates at once, beyond those allocated before."""
    with Footprint(device) as footprint:
        footprint.made()
        work()
    return footprint.peak
