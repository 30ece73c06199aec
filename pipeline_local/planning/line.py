"""How long a message takes from one rank to the next, measured with messages like a run's.

The receiver waits before the message comes, as in a run, and answers with a single byte.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from functools import partial
from statistics import median
from threading import Thread
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from pipeline_local.placement.costs import Link
from pipeline_local.record.metrics import settle

WARMUP = 20
"""Messages that are not timed: TCP opens its window in the course of some round trips."""

Transfer = Callable[[Tensor], object]
"""Sends a tensor, or receives into it, and waits until that is done."""


@dataclass(frozen=True)
class Line:
    """Between a rank and the next.

    Attributes:
        num_bytes: of a message.
        runs: repetitions; medians count.
        device: where messages begin and end.
    """

    num_bytes: int
    runs: int
    device: torch.device

    def between_ranks(self, rank: int, world_size: int) -> Link:
        """To the rank above; the first rank gets that to the one below it.

        All ranks of the default group call it. Edges are measured one by one, as several may share
        what lies beneath.
        """
        links = [self._edge(upper, rank) for upper in range(world_size - 1)]
        return links[max(0, rank - 1)]

    def _edge(self, upper: int, rank: int) -> Link:
        found: list[Link | None] = [None]
        other = upper + 1 if rank == upper else upper
        send, recv = partial(dist.send, dst=other), partial(dist.recv, src=other)
        if rank == upper:
            found = [self._ask(send, recv)]
        elif rank == upper + 1:
            self._answer(send, recv)
        dist.broadcast_object_list(found, upper, device=torch.device("cpu"))
        (link,) = found
        assert link is not None
        return link

    def between_threads(self) -> Link:
        """Over gloo's loopback sockets, as between two ranks of a host."""
        store = dist.HashStore()
        other = Thread(target=lambda: self._answer(*_transfers(store, 1)), daemon=True)
        other.start()
        link = self._ask(*_transfers(store, 0))
        other.join()
        return link

    def _messages(self) -> list[Tensor]:
        """Small and large in turns, always the same two: a large one may be of hundreds of MB."""
        large = torch.zeros(self.num_bytes, dtype=torch.uint8, device=self.device)
        return [large[:1], large] * (WARMUP + self.runs)

    def _ask(self, send: Transfer, recv: Transfer) -> Link:
        seconds: dict[int, list[float]] = {1: [], self.num_bytes: []}
        byte = torch.zeros(1, dtype=torch.uint8, device=self.device)
        for message in self._messages():
            settle(self.device)
            begin = time.perf_counter()
            send(message)
            recv(byte)
            settle(self.device)
            seconds[len(message)].append(time.perf_counter() - begin)
        short, long = (median(values[WARMUP:]) for values in seconds.values())
        return Link(short / 2, self.num_bytes / max(long - short, 1e-9))

    def _answer(self, send: Transfer, recv: Transfer) -> None:
        for message in self._messages():
            recv(message)
            send(message[:1])


def _transfers(store: dist.Store, rank: int) -> tuple[Transfer, Transfer]:
    group: Any = dist.ProcessGroupGloo(store, rank, 2, timedelta(minutes=1))
    other = 1 - rank
    return (
        lambda tensor: group.send([tensor], other, 0).wait(),
        lambda tensor: group.recv([tensor], other, 0).wait(),
    )
