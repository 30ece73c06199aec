"""Spans of a device: when it did what the host has queued, by events on its current stream."""

import time
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from pipeline_local.record.trace import Span, What


class DeviceTimes:
    """Measures acts on a device, without waiting for it while it works.

    Args:
        device: a GPU, whose current stream does the work.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._began = 0
        self._start = self._event()
        self._acts: list[tuple[What, torch.Event, torch.Event]] = []

    def start(self) -> None:
        """Begins to measure: waits for the device once, so that both clocks show the same."""
        torch.accelerator.synchronize(self._device)
        self._began = time.monotonic_ns()
        self._start.record(torch.accelerator.current_stream(self._device))

    @contextmanager
    def during(self, what: What) -> Iterator[None]:
        """Measures the enclosed act, from when the device comes to it until it has done it."""
        stream = torch.accelerator.current_stream(self._device)
        begin, end = self._event(), self._event()
        begin.record(stream)
        yield
        end.record(stream)
        self._acts.append((what, begin, end))

    def spans(self) -> list[Span]:
        """Returns the acts that the device has done, on the clock of the host."""
        return [
            Span(*what, self._since_start(begin), self._since_start(end))
            for what, begin, end in self._acts
            if end.query()
        ]

    def _since_start(self, event: torch.Event) -> int:
        return self._began + round(1e6 * self._start.elapsed_time(event))

    def _event(self) -> torch.Event:
        return torch.Event(self._device, enable_timing=True)
