"""The rendezvous: which ranks start together, on a store that may hold values of earlier starts.

torchrun's agent keeps one store while it restarts its ranks. What ranks of an earlier start have
left there looks current: an address of a process that is gone, a step to start from that has
passed. The agents' restart counts do not help, as only the host of a failure counts it.
"""

import socket
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from concurrent.futures import TimeoutError as OverdueError
from datetime import timedelta
from uuid import uuid4

import torch.distributed as dist

LISTEN_SECONDS = 0.2
"""Seconds between two looks at whether the first rank listens."""
CONNECT_SECONDS = 15.0
"""Longest time that one such look may take."""

POLL_SECONDS = 0.01
"""Seconds between two looks of the first rank at the store."""


def rendezvous(store: dist.Store, rank: int, world_size: int, timeout: timedelta) -> dist.Store:
    """Returns the part of the store that belongs to this start alone, the same for all its ranks.

    Every rank calls with a new unique name; the first rank answers each name that it sees with the
    name of the start, until every rank has repeated that. So an answer to a call that an earlier
    rank has left is never read, and neither is an answer that the earlier rank has got.

    Raises:
        torch.distributed.DistError: a rank did not join within `timeout`.
    """
    start = _receive(store, world_size, timeout) if rank == 0 else _call(store, rank, timeout)
    return dist.PrefixStore(f"start-{start}", store)


def host_of(store: dist.Store) -> str:
    """Returns the host that serves a store; this one where it is a file."""
    while isinstance(store, dist.PrefixStore):
        store = store.underlying_store
    return str(getattr(store, "host", "localhost"))


def in_time(connect: Callable[[], dist.TCPStore], timeout: timedelta) -> dist.TCPStore:
    """Returns the store that `connect` makes in a thread.

    Torch's own waits hear no signals, and have no limit where something answers that is no store.

    Raises:
        torch.distributed.DistError: there is none, or not within `timeout`.
    """
    made: Future[dist.TCPStore] = Future()

    def make() -> None:
        try:
            made.set_result(connect())
        except Exception as error:
            made.set_exception(error)

    threading.Thread(target=make, daemon=True).start()
    try:
        return made.result(timeout.total_seconds())
    except OverdueError:
        raise dist.DistNetworkError("what listens there does not answer") from None


def await_listener(host: str, port: int, timeout: timedelta) -> None:
    """Waits until something listens: the first rank may still load torch.

    Something else that has its port never answers.

    Raises:
        torch.distributed.DistError: nothing has listened within `timeout`.
    """
    until = time.monotonic() + timeout.total_seconds()
    while True:
        try:
            socket.create_connection((host, port), CONNECT_SECONDS).close()
            return
        except OSError as error:
            if time.monotonic() > until:
                raise dist.DistNetworkError(f"no rank answers there: {error}") from None
            time.sleep(LISTEN_SECONDS)


def _receive(store: dist.Store, world_size: int, timeout: timedelta) -> str:
    start, expected = uuid4().hex, set(range(1, world_size))
    deadline = time.monotonic() + timeout.total_seconds()
    while expected:
        if time.monotonic() > deadline:
            raise dist.DistStoreError(f"ranks {sorted(expected)} did not join within {timeout}")
        for rank in sorted(expected):
            if store.check([f"call/{rank}"]):
                store.set(f"answer/{store.get(f'call/{rank}').decode()}", start)
            if store.check([f"here/{start}/{rank}"]):
                expected.remove(rank)
        time.sleep(POLL_SECONDS)
    return start


def _call(store: dist.Store, rank: int, timeout: timedelta) -> str:
    name = uuid4().hex
    store.set(f"call/{rank}", name)
    store.wait([f"answer/{name}"], timeout)
    start = store.get(f"answer/{name}").decode()
    store.set(f"here/{start}/{rank}", "")
    return start
