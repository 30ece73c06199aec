"""How a rank spends its wall time, and clocks that wait for the device."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch

from pipeline_local.user_input.json_text import Facts


class WallTime:
    """Measures how one rank spends its wall time.

    Args:
        waited: return the seconds spent so far waiting for the upstream and for the downstream
            neighbour, in training or not.
    """

    def __init__(self, *waited: Callable[[], float]) -> None:
        self._waited_so_far = waited
        self._accounted = [0.0 for _ in waited]
        self._training = 0.0
        self._waited = [0.0 for _ in waited]
        self._stall = 0.0
        self._steps = 0
        self._at_last_pace = 0.0
        self._waited_at_last_pace = [0.0 for _ in waited]

    @contextmanager
    def training(self, steps: int = 1) -> Iterator[None]:
        """Times optimizer steps, and waits within them."""
        begin = time.perf_counter()
        yield
        self._training += time.perf_counter() - begin
        self._waited = [a + b for a, b in zip(self._waited, self._newly_waited(), strict=True)]
        self._steps += steps

    @contextmanager
    def evaluating(self) -> Iterator[None]:
        """Excludes the waits of the enclosed evaluation from those of training. The device must be
        settled before and after it, as waits on a device are reported late."""
        yield
        self._newly_waited()

    def _newly_waited(self) -> list[float]:
        before, self._accounted = self._accounted, [waited() for waited in self._waited_so_far]
        return [now - then for now, then in zip(self._accounted, before, strict=True)]

    @contextmanager
    def saving(self) -> Iterator[None]:
        """Times what a checkpoint takes from the training thread: copies, and waits for a write."""
        begin = time.perf_counter()
        yield
        self._stall += time.perf_counter() - begin

    def pace(self, batch_size: int) -> tuple[float, list[float]]:
        """Returns the samples per second of training since the last call, and the part of its time
        that was spent waiting for each neighbour."""
        seconds = max(self._training - self._at_last_pace, 1e-9)
        rate = self._steps * batch_size / seconds
        waits = zip(self._waited, self._waited_at_last_pace, strict=True)
        shares = [round(min(1.0, (now - then) / seconds), 4) for now, then in waits]
        self._at_last_pace, self._steps = self._training, 0
        self._waited_at_last_pace = self._waited
        return round(rate, 2), shares

    def facts(self, device_stall: float = 0.0) -> Facts:
        """Returns the seconds of training, of waiting within it, and of checkpoints.

        Args:
            device_stall: seconds by which checkpoints held up a device, unseen by this clock.
        """
        return {
            "seconds": self._training,
            "waited": sum(self._waited),
            "checkpoint_stall_seconds": self._stall + device_stall,
        }


def settle(device: torch.device) -> None:
    """Waits until the device has done what is queued, so that a clock may be read.

    It does not wait for a receive that is posted ahead on its own stream: that message may depend
    on what this rank has yet to do.
    """
    if device.type != "cpu":
        torch.accelerator.current_stream(device).synchronize()


def timed(device: torch.device, work: Callable[[], object]) -> float:
    """Returns the seconds that some work takes, with the kernels that it launches."""
    settle(device)
    begin = time.perf_counter()
    work()
    settle(device)
    return time.perf_counter() - begin
