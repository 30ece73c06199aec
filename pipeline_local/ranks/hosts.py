"""Several plain hosts without a scheduler: each starts its ranks, and all meet on the first one."""

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import timedelta
from functools import partial

import torch.distributed as dist
from torch.distributed.elastic.rendezvous import RendezvousParameters

from pipeline_local.errors import UserError, first_line
from pipeline_local.ranks.rendezvous import in_time

PATIENCE = timedelta(minutes=10)
"""Longest wait for all hosts."""

POLL_SECONDS = 0.1
"""Seconds between two looks at which hosts are there."""

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

    @classmethod
    def read(cls, count: str, number: str, head: str, port: str, restarts: str) -> "Hosts":
        """Read what launch/multinode.sh was given.

        Raises:
            UserError: a number is none, or out of range; named as in the script.
        """
        hosts = read_number("NODES", count, 1)
        return cls(
            hosts,
            read_number("NODE", number, 0, hosts - 1),
            head,
            read_number("PORT", port, 1, 65535),
            read_number("RESTARTS", restarts, 0),
        )

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


def read_number(name: str, text: str, least: int, most: int | None = None) -> int:
    """Read a number.

    Raises:
        UserError: it is none, or out of range.
    """
    with suppress(ValueError):
        value = int(text)
        if least <= value and (most is None or value <= most):
            return value
    allowed = f"of at least {least}" if most is None else f"from {least} to {most}"
    raise UserError(f"{name}: expected a number {allowed}, got {text}")


class Meeting:
    """Where all hosts meet: a store that the first one serves, for as long as this is kept.

    Args:
        hosts: as this one sees them.
        on_stop: is called in a thread once any host asks all of them to stop.

    Raises:
        UserError: the port is taken, or the first host does not come.
    """

    def __init__(self, hosts: Hosts, on_stop: Callable[[], None]) -> None:
        self._hosts = hosts
        connect = partial(dist.TCPStore, hosts.head, hosts.port, is_master=hosts.number == 0)
        connect = partial(connect, timeout=PATIENCE, wait_for_workers=False, multi_tenant=True)
        with self._reporting():
            self._store = in_time(connect, PATIENCE)
            self._listener = _in_thread(partial(_listen, self._store.clone(), on_stop))

    def wait(self) -> None:
        """Wait until every host is there.

        Raises:
            UserError: a host does not come.
        """
        until = time.monotonic() + PATIENCE.total_seconds()
        absent = list(range(self._hosts.count))
        with self._reporting():
            self._store.set(f"host {self._hosts.number}", "")
            while absent := [host for host in absent if not self._store.check([f"host {host}"])]:
                if time.monotonic() > until:
                    missing = ", ".join(map(str, absent))
                    raise dist.DistStoreError(f"still missing after {PATIENCE}: {missing}")
                time.sleep(POLL_SECONDS)

    def stop_all(self) -> None:
        """Ask all hosts to stop: whose ranks have not met all others would wait for them."""
        self._tell(_STOP)

    def leave(self) -> None:
        """Ask nobody to stop any more; the store may end now."""
        self._tell("leave")
        self._listener.join(TELL_SECONDS)

    def _tell(self, what: str) -> None:
        """All hosts; the first message counts. Where the network is cut, nobody hears it."""
        _in_thread(partial(self._store.compare_set, _MESSAGE, "", what)).join(TELL_SECONDS)

    @contextmanager
    def _reporting(self) -> Iterator[None]:
        try:
            yield
        except dist.DistError as error:
            why = "the port is taken" if "EADDRINUSE" in str(error) else first_line(error)
            at = f"{self._hosts.head}:{self._hosts.port}"
            raise UserError(
                f"{self._hosts.count} hosts cannot meet at {at} ({why[:200]}); start this on all of"
                f" them, or set PORT to one that is free on {self._hosts.head}"
            ) from None


_MESSAGE, _STOP = "message", "stop"
_FOR_EVER = timedelta(days=365)


def _listen(store: dist.Store, on_stop: Callable[[], None]) -> None:
    """A wait on a connection of its own, as it blocks all other users."""
    store.wait([_MESSAGE], _FOR_EVER)
    if store.get(_MESSAGE).decode() == _STOP:
        on_stop()


def _in_thread(work: Callable[[], object]) -> threading.Thread:
    """Torch's own waits hear no signals. A store that is gone is no error."""

    def attempt() -> None:
        with suppress(dist.DistError):
            work()

    thread = threading.Thread(target=attempt, daemon=True)
    thread.start()
    return thread
