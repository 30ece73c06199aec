"""How far a host may be ahead of its device: the stop relies on it, and memory is bounded by it.

Where a receive only orders streams, nothing else holds back the host of a stage that sends to
nobody. It would queue step after step for messages that are not there yet.
"""

from collections.abc import Callable
from contextlib import AbstractContextManager

import torch

from pipeline_local.ranks.p2p import HOST_BACKEND, P2PKind


def lead(kind: P2PKind) -> int:
    """Returns how many steps hosts may be ahead of what they have received.

    Args:
        kind: the point-to-point transport between the ranks. Only gloo is sure to block hosts.
    """
    return 0 if kind == HOST_BACKEND else 1


class Lead:
    """Holds the host back: while it queues a step, its device has done all but the one before.

    So the device always has a whole step to do meanwhile. Without a device this does nothing.

    Args:
        device: of this rank.
        waiting: a context for the time in which the host waits.
    """

    def __init__(
        self, device: torch.device, waiting: Callable[[], AbstractContextManager[None]]
    ) -> None:
        self._device = device
        self._waiting = waiting
        self._end: torch.Event | None = None

    def queued(self) -> None:
        """Waits until the device has done the step before the one that has just been queued."""
        if self._device.type == "cpu":
            return
        stream = torch.accelerator.current_stream(self._device)
        before, self._end = self._end, stream.record_event()
        if before is not None:
            with self._waiting():
                before.synchronize()
