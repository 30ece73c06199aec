"""What the ranks know of each other: every rank sets its latest facts in the c10d store.

All ranks may read them. Training does so on logged steps only, and never waits for those of
another rank.
"""

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta

import torch.distributed as dist

from pipeline_local.errors import NeighbourLostError, RefusedElsewhereError, first_line
from pipeline_local.ranks.rendezvous import host_of
from pipeline_local.user_input.json_text import Facts

RECONNECT_TIMEOUT = timedelta(seconds=5)
"""Longest time to open another connection to a store that was there a moment ago."""


class RankStore:
    """Holds one JSON object per rank and topic, and one per topic that all ranks share.

    Args:
        store: shared by all ranks (a TCPStore), or a HashStore for one process.
        rank: the rank of this process.
        world_size: the number of ranks.
    """

    def __init__(self, store: dist.Store, rank: int, world_size: int) -> None:
        self._store = store
        self.rank = rank
        self._world_size = world_size

    def set(self, topic: str, facts: Facts) -> None:
        """Replaces this rank's value.

        Raises:
            NeighbourLostError: the store is gone with the first rank.
        """
        self.set_shared(f"{topic}/{self.rank}", facts)

    def get_all(self, topic: str) -> list[Facts]:
        """Returns the values that have been set, in rank order."""
        keys = [f"{topic}/{rank}" for rank in range(self._world_size)]
        if not self._store.check(keys):
            keys = [key for key in keys if self._store.check([key])]
        return [json.loads(value) for value in self._store.multi_get(keys)]

    def compare_set(self, topic: str, facts: Facts) -> Facts:
        """Sets the value that all ranks share, unless it is set; returns the one that is set then.

        Unlike with `set_shared`, the store has it when the call returns.

        Raises:
            NeighbourLostError: the store is gone with the first rank.
        """
        with reachable():
            value: Facts = json.loads(self._store.compare_set(topic, "", json.dumps(facts)))
            return value

    def clone(self) -> "RankStore":
        """Returns the same store over another connection: a wait blocks all users of its own.

        Raises:
            NeighbourLostError: the store is gone with the first rank.
        """
        patience = self._store.timeout  # type: ignore[attr-defined]  # not in its stub
        self._store.set_timeout(RECONNECT_TIMEOUT)  # torch retries a dead store for that long
        try:
            with reachable():
                store = self._store.clone()
        finally:
            self._store.set_timeout(patience)
        store.set_timeout(patience)
        return RankStore(store, self.rank, self._world_size)

    def wait(self, topic: str, rank: int, timeout: timedelta) -> Facts:
        """Returns one rank's value, once it is set.

        Raises:
            NeighbourLostError: the store is gone with the first rank, without that value.
            torch.distributed.DistError: it was not set within `timeout`, or the store is gone.
        """
        self.wait_until_set(topic, rank, timeout)
        facts: Facts = json.loads(self._store.get(f"{topic}/{rank}"))
        return facts

    def wait_until_set(self, topic: str, rank: int, timeout: timedelta) -> None:
        """Waits until one rank's value is set; raises as `wait` does."""
        with reachable(dist.DistNetworkError):
            self._store.wait([f"{topic}/{rank}"], timeout)

    def gather(self, topic: str, timeout: timedelta) -> list[Facts]:
        """Returns the values of all ranks, once they are set."""
        return [self.wait(topic, rank, timeout) for rank in range(self._world_size)]

    def set_shared(self, topic: str, facts: Facts) -> None:
        """Replaces the value that all ranks share.

        Raises:
            NeighbourLostError: the store is gone with the first rank.
        """
        with reachable():
            self._store.set(topic, json.dumps(facts))

    def get_shared(self, topic: str) -> Facts | None:
        """Returns the value that all ranks share; None if there is none yet.

        Raises:
            NeighbourLostError: the store is gone with the first rank.
        """
        with reachable():
            if not self._store.check([topic]):
                return None
            facts: Facts = json.loads(self._store.get(topic))
            return facts

    @contextmanager
    def unanimous(self, work: str, timeout: timedelta) -> Iterator[None]:
        """Lets all ranks go on once all have done the enclosed work, and else none of them.

        A rank whose work raises passes that on; all others then raise `RefusedElsewhereError`.

        Args:
            work: its name, which no other work has.
            timeout: the longest wait for the slowest rank.

        Raises:
            NeighbourLostError: the first rank is gone without an answer.
        """
        ready, go = f"ready {work}", f"go {work}"
        try:
            yield
        except BaseException:
            self.set(ready, {"refused": True})
            if self.rank == 0:
                self.set(go, {"refused": True})
            raise
        self.set(ready, {"refused": False})
        if self.rank == 0:
            answers = self.gather(ready, timeout)
            self.set(go, {"refused": any(answer["refused"] for answer in answers)})
        try:
            verdict = self.wait(go, 0, timeout)
        except dist.DistError:  # the first rank is gone, and has reported why
            raise RefusedElsewhereError from None
        if verdict["refused"]:
            raise RefusedElsewhereError

    @property
    def host(self) -> str:
        """The host of the first rank."""
        return host_of(self._store)

    @property
    def served_by_rank_0(self) -> bool:
        """Whether the store ends with the first rank, rather than with its launcher."""
        return os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != str(True)

    @property
    def server(self) -> str:
        """The process that serves the store, for a message."""
        return "served by rank 0" if self.served_by_rank_0 else "served by the launcher"


@contextmanager
def reachable(lost: type[Exception] = dist.DistError) -> Iterator[None]:
    """Raises NeighbourLostError where the store does not answer."""
    try:
        yield
    except lost as error:
        reason = first_line(error)
        raise NeighbourLostError(0, f"its store does not answer: {reason}") from error
