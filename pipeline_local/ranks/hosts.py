"""Several plain hosts without a scheduler: each starts its ranks, and all meet on the first one."""

import threading
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from datetime import timedelta
from functools import partial
from typing import TypeVar

import torch.distributed as dist
from torch.distributed.elastic.rendezvous import RendezvousParameters

from pipeline_local.errors import UserError
from pipeline_local.ranks.rendezvous import in_time

T = TypeVar("T")

PATIENCE = timedelta(minutes=10)
"""Longest wait for all hosts."""

TELL_SECONDS = 2.0
"""Longest time to tell the other hosts something."""


@dataclass(frozen=True)
class Hosts:
    """The hosts of a run, as one of them sees them.

    Args:
        count: of all hosts, each with the same number of ranks.
        number: this one's, from 0.
        head: the name or address of host 0.
        port: free on host 0, and open to the others.
        restarts: how often the ranks are started again after a failure.
    """

    count: int
    number: int
    head: str
    port: int
    restarts: int = 0

    def parameters(self) -> RendezvousParameters:
        """Return how torch's agents of all hosts find each other."""
        return RendezvousParameters(
            backend="static",
            endpoint=f"{self.head}:{self.port}",
            run_id="pipeline_local",
            min_nodes=self.count,
            max_nodes=self.count,
            rank=self.number,
            timeout=PATIENCE.total_seconds(),
        )


class Meeting:
    """Where all hosts meet: the first one serves it, for as long as this is kept.

    Args:
        hosts: as this one sees them.

    Raises:
        UserError: the port is taken, or the first host does not come.
    """

    def __init__(self, hosts: Hosts) -> None:
        self._hosts = hosts
        connect = partial(dist.TCPStore, hosts.head, hosts.port, is_master=hosts.number == 0)
        self._store = self._done(
            partial(connect, timeout=PATIENCE, wait_for_workers=False, multi_tenant=True)
        )

    def wait(self) -> None:
        """Wait until every host is there.

        Raises:
            UserError: a host does not come.
        """
        store = self._store.clone()  # a wait blocks all users of its own
        store.set(f"host {self._hosts.number}", "")
        everyone = [f"host {number}" for number in range(self._hosts.count)]
        self._done(lambda: store.wait(everyone, PATIENCE))

    def stop_all(self) -> threading.Thread:
        """Tell all hosts that they are asked to stop; give the thread that does so.

        Whose ranks have not met the others yet would wait for those that have ended.
        """
        return _in_thread(lambda: self._store.compare_set("stop", "", "asked"))

    def on_stop(self, act: Callable[[], None]) -> None:
        """Let a thread call `act` once all hosts are asked to stop."""
        store = self._store.clone()

        def wait() -> None:
            store.wait(["stop"], timedelta(days=365))
            act()

        _in_thread(wait)

    def _done(self, work: Callable[[], T]) -> T:
        """The result of what all hosts take part in."""
        try:
            return in_time(work, PATIENCE)
        except dist.DistError as error:
            why = "the port is taken" if "EADDRINUSE" in str(error) else str(error).splitlines()[0]
            at = f"{self._hosts.head}:{self._hosts.port}"
            raise UserError(
                f"{self._hosts.count} hosts cannot meet at {at} ({why[:200]}); start this on all of"
                f" them, or set PORT to one that is free on {self._hosts.head}"
            ) from None


def _in_thread(work: Callable[[], object]) -> threading.Thread:
    """Torch's own waits hear no signals; who does not answer any more is gone."""

    def attempt() -> None:
        with suppress(dist.DistError):
            work()

    thread = threading.Thread(target=attempt, daemon=True)
    thread.start()
    return thread
