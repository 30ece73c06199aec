"""The board: who is where. Every rank pins its latest facts to the c10d store; anyone may look.

Training looks at it on logged steps only, and never waits for another rank's slip.
"""

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import torch.distributed as dist

from pipeline_local.errors import NeighbourLostError, RefusedElsewhereError

Facts = dict[str, Any]
RECONNECTING = timedelta(seconds=5)
"""For another connection to a board that was there a moment ago."""


class Board:
    """One slip of JSON per rank and topic.

    Args:
        store: shared by all ranks (a TCPStore), or a HashStore for one process.
        rank: of this process.
        world_size: ranks in all.
    """

    def __init__(self, store: dist.Store, rank: int, world_size: int) -> None:
        self._store = store
        self.rank = rank
        self._world_size = world_size

    def pin(self, topic: str, facts: Facts) -> None:
        """Replace this rank's slip.

        Raises:
            NeighbourLostError: the board is gone with the first rank.
        """
        self.post(f"{topic}/{self.rank}", facts)

    def look(self, topic: str) -> list[Facts]:
        """The slips that are there, in rank order."""
        keys = [f"{topic}/{rank}" for rank in range(self._world_size)]
        if not self._store.check(keys):
            keys = [key for key in keys if self._store.check([key])]
        return [json.loads(slip) for slip in self._store.multi_get(keys)]

    def claim(self, topic: str, facts: Facts) -> Facts:
        """Pin a slip of which there is only one for all ranks; gives the first one's.

        Unlike a slip that is only posted, this one is there when the call returns.

        Raises:
            NeighbourLostError: the board is gone with the first rank.
        """
        with reachable():
            slip: Facts = json.loads(self._store.compare_set(topic, "", json.dumps(facts)))
            return slip

    def claimed(self, topic: str) -> Facts | None:
        """What has been claimed, if anything."""
        if not self._store.check([topic]):
            return None
        slip: Facts = json.loads(self._store.get(topic))
        return slip

    def again(self) -> "Board":
        """The same board over a connection of its own: one that waits holds up all who share it.

        Raises:
            NeighbourLostError: the board is gone with the first rank.
        """
        patience = self._store.timeout  # type: ignore[attr-defined]  # not in its stub
        self._store.set_timeout(RECONNECTING)  # torch would knock at a dead board's door for that
        try:
            with reachable():
                store = self._store.clone()
        finally:
            self._store.set_timeout(patience)
        store.set_timeout(patience)
        return Board(store, self.rank, self._world_size)

    def wait(self, topic: str, rank: int, timeout: timedelta) -> Facts:
        """One rank's slip, once it is there.

        Raises:
            NeighbourLostError: the board is gone with the first rank, without that slip.
            torch.distributed.DistError: not within `timeout`, or the board is gone after all.
        """
        key = f"{topic}/{rank}"
        with reachable(dist.DistNetworkError):
            self._store.wait([key], timeout)
        facts: Facts = json.loads(self._store.get(key))
        return facts

    def gather(self, topic: str, timeout: timedelta) -> list[Facts]:
        """The slips of all ranks, once they are there."""
        return [self.wait(topic, rank, timeout) for rank in range(self._world_size)]

    def post(self, topic: str, facts: Facts) -> None:
        """Replace the one slip that all ranks share.

        Raises:
            NeighbourLostError: the board is gone with the first rank.
        """
        with reachable():
            self._store.set(topic, json.dumps(facts))

    def posted(self, topic: str) -> Facts | None:
        """The slip that all ranks share; None if there is none yet.

        Raises:
            NeighbourLostError: the board is gone with the first rank.
        """
        with reachable():
            if not self._store.check([topic]):
                return None
            facts: Facts = json.loads(self._store.get(topic))
            return facts

    @contextmanager
    def unanimous(self, timeout: timedelta) -> Iterator[None]:
        """Leave the enclosed work together: once all ranks have done it, or none goes on.

        A rank whose work raises goes on raising; all others then raise `RefusedElsewhereError`.

        Raises:
            NeighbourLostError: the first rank is gone without an answer.
        """
        try:
            yield
        except BaseException:
            self.pin("ready", {"refused": True})
            if self.rank == 0:
                self.pin("go", {"refused": True})
            raise
        self.pin("ready", {"refused": False})
        if self.rank == 0:
            answers = self.gather("ready", timeout)
            self.pin("go", {"refused": any(answer["refused"] for answer in answers)})
        try:
            verdict = self.wait("go", 0, timeout)
        except dist.DistError:  # the first rank is gone, and has said why
            raise RefusedElsewhereError from None
        if verdict["refused"]:
            raise RefusedElsewhereError

    @property
    def kept_by_rank_0(self) -> bool:
        """Whether the board ends with the first rank, rather than with its launcher."""
        return os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != str(True)

    @property
    def keeper(self) -> str:
        """Who keeps the board, for a message."""
        return "kept by rank 0" if self.kept_by_rank_0 else "kept by the launcher"


@contextmanager
def reachable(lost: type[Exception] = dist.DistError) -> Iterator[None]:
    """Raise NeighbourLostError where the board does not answer."""
    try:
        yield
    except lost as error:
        reason = str(error).splitlines()[0]
        raise NeighbourLostError(0, f"its board does not answer: {reason}") from error
