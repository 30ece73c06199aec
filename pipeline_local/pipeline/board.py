"""The board: who is where. Every rank pins its latest facts to the c10d store; anyone may look.

Nothing in training waits for the board.
"""

import json
from datetime import timedelta
from typing import Any

import torch.distributed as dist

Facts = dict[str, Any]


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
        """Replace this rank's slip."""
        self._store.set(f"{topic}/{self.rank}", json.dumps(facts))

    def look(self, topic: str) -> list[Facts]:
        """The slips that are there, in rank order."""
        keys = [f"{topic}/{rank}" for rank in range(self._world_size)]
        return [json.loads(self._store.get(key)) for key in keys if self._store.check([key])]

    def wait(self, topic: str, rank: int, timeout: timedelta) -> Facts:
        """One rank's slip, once it is there.

        Raises:
            torch.distributed.DistError: not within `timeout`.
        """
        key = f"{topic}/{rank}"
        self._store.wait([key], timeout)
        facts: Facts = json.loads(self._store.get(key))
        return facts

    def gather(self, topic: str, timeout: timedelta) -> list[Facts]:
        """The slips of all ranks, once they are there."""
        return [self.wait(topic, rank, timeout) for rank in range(self._world_size)]
