"""The clocks of the ranks: what to add to each to have that of the first rank.

Ranks of one host share its monotonic clock. Those of another host ask the first rank for the time,
over the store, and believe the quickest answer, as NTP does. That is done before the first step and
after the last one: between them the difference is taken to change evenly.
"""

import time
from collections.abc import Sequence
from pathlib import Path
from socket import gethostname

from pipeline_local.ranks.join import COLLECTIVE_TIMEOUT
from pipeline_local.watch.store import RankStore

ROUNDS = 16
"""Questions of each rank; some are answered late, as the first rank answers rank after rank."""

_BOOT = Path("/proc/sys/kernel/random/boot_id")

Sample = tuple[int, int]
"""A rank's own time and what to add to it, in nanoseconds."""


class ClockOffsets:
    """The clock of this rank beside that of the first.

    Args:
        store: of all ranks.

    Attributes:
        samples: the differences that were measured; none where both ranks have one clock.
    """

    def __init__(self, store: RankStore) -> None:
        self.samples: list[Sample] = []
        self._store = store
        self._turn = 0
        store.set("clock", {"host": host()})
        hosts = [facts["host"] for facts in store.gather("clock", COLLECTIVE_TIMEOUT)]
        self._others = [rank for rank, name in enumerate(hosts) if name != hosts[0]]

    def measure(self) -> None:
        """Takes a sample; all ranks call it together.

        Raises:
            NeighbourLostError: the store is gone with the first rank.
        """
        self._turn += 1
        if self._store.rank in self._others:
            self.samples.append(self._ask())
        elif self._store.rank == 0:
            for rank in self._others:
                self._answer(rank)

    def _ask(self) -> Sample:
        answers = []
        for number in range(ROUNDS):
            asked = time.monotonic_ns()
            self._store.set(self._topic("question", number), {})
            topic = self._topic(f"answer {self._store.rank}", number)
            self._store.wait_until_set(topic, 0, COLLECTIVE_TIMEOUT)
            answered = time.monotonic_ns()
            then: int = self._store.wait(topic, 0, COLLECTIVE_TIMEOUT)["time"]
            middle = (asked + answered) // 2
            answers.append((answered - asked, middle, then - middle))
        return min(answers)[1:]

    def _answer(self, rank: int) -> None:
        for number in range(ROUNDS):
            self._store.wait_until_set(self._topic("question", number), rank, COLLECTIVE_TIMEOUT)
            now = time.monotonic_ns()
            self._store.set(self._topic(f"answer {rank}", number), {"time": now})

    def _topic(self, name: str, number: int) -> str:
        return f"clock {name} {self._turn}.{number}"


def host() -> str:
    """Returns what only processes with one monotonic clock share: the start of their system."""
    try:
        return _BOOT.read_text().strip()
    except OSError:  # not Linux
        return gethostname()


def shifted(time: int, samples: Sequence[Sample]) -> int:
    """Returns a rank's time on the clock of the first rank.

    Args:
        time: in nanoseconds of its own clock.
        samples: of that rank, in the order in which they were taken.
    """
    if not samples:
        return time
    (first, before), (last, after) = samples[0], samples[-1]
    passed = (time - first) / (last - first) if last > first else 0.0
    return time + before + round((after - before) * passed)
