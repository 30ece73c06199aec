"""Measures how long work takes on its device: by a device's events, or a CPU's clock.

Between GPUs it is not the host that waits for a late message, but the compute stream.
"""

import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager

import torch

CPU = torch.device("cpu")


class Stopwatch:
    """Adds up seconds.

    On a device they count from when it has done all that was queued before, until it may do what is
    queued after, whether the host or only the stream waits in between. Reading them does not wait
    for the device: they are complete once it has settled.

    Args:
        device: the device that does the work, on its current stream.
    """

    def __init__(self, device: torch.device = CPU) -> None:
        self._device = device
        self._seconds = 0.0
        self._under_way: deque[tuple[torch.Event, torch.Event]] = deque()
        self._spare: list[tuple[torch.Event, torch.Event]] = []

    @contextmanager
    def running(self) -> Iterator[None]:
        """Counts the time of the enclosed work, or of the enclosed wait."""
        if self._device.type == "cpu":
            started = time.perf_counter()
            yield
            self._seconds += time.perf_counter() - started
            return
        stream = torch.accelerator.current_stream(self._device)
        begin, end = self._spare.pop() if self._spare else (self._event(), self._event())
        begin.record(stream)
        yield
        end.record(stream)
        self._under_way.append((begin, end))

    @property
    def seconds(self) -> float:
        """The seconds of all work that is done."""
        while self._under_way and self._under_way[0][1].query():
            begin, end = self._under_way.popleft()
            self._seconds += begin.elapsed_time(end) / 1000
            self._spare.append((begin, end))
        return self._seconds

    def _event(self) -> torch.Event:
        return torch.Event(self._device, enable_timing=True)
