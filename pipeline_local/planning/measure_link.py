"""Measures latency and bandwidth from one rank to the next, with messages as large as a run's.

The receive is posted before the message is sent, as in a run; the answer is a single byte.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from functools import partial
from threading import Thread
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from pipeline_local.placement.costs import Link
from pipeline_local.record.wall_time import settle

WARMUP = 20
"""More messages of each size: TCP needs some round trips to open its window."""

Transfer = Callable[[Tensor], object]
"""Sends a tensor, or receives into it, and waits for completion."""


@dataclass(frozen=True)
class LinkBenchmark:
    """A ping-pong between a rank and the next.

    Attributes:
        num_bytes: size of a message.
        runs: repetitions beyond the warmup; the shortest counts.
        device: the device of the messages at both ends.
        group: all ranks, by a backend for that device; None: the default group has one.
    """

    num_bytes: int
    runs: int
    device: torch.device
    group: dist.ProcessGroup | None = None

    def between_ranks(self, rank: int, world_size: int) -> Link:
        """Measure the link to the upstream neighbour; for the first rank, the downstream one.

        All ranks of the default group call it together. Links are measured one by one, as they may
        share hardware.
        """
        links = [self._edge(upstream, rank) for upstream in range(world_size - 1)]
        return links[max(0, rank - 1)]

    def _edge(self, upstream: int, rank: int) -> Link:
        found: list[Link | None] = [None]
        other = upstream + 1 if rank == upstream else upstream
        send = partial(dist.send, dst=other, group=self.group)
        recv = partial(dist.recv, src=other, group=self.group)
        if rank == upstream:
            found = [self._ask(send, recv)]
        elif rank == upstream + 1:
            self._answer(send, recv)
        dist.broadcast_object_list(found, upstream, device=torch.device("cpu"))
        (link,) = found
        assert link is not None
        return link

    def between_threads(self) -> Link:
        """Measure gloo over loopback sockets, as between two ranks of a host."""
        store = dist.HashStore()
        other = Thread(target=lambda: self._answer(*_transfers(store, 1)), daemon=True)
        other.start()
        link = self._ask(*_transfers(store, 0))
        other.join()
        return link

    def _messages(self) -> list[Tensor]:
        """A small and a large message, alternating. They share memory, as it may be large."""
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
        # what else the host does only ever adds, often more than a message takes
        short, long = map(min, seconds.values())
        if long <= short:
            return Link(short / 2, self.num_bytes / long, at_least=True)
        return Link(short / 2, self.num_bytes / (long - short))

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
