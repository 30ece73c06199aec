"""Heartbeats: every rank writes its position to the store once a second, and reads all positions.

Times are never compared between hosts: a rank reports for how long it has been at its position, and
the reader measures for how long nothing new has arrived. A process that was stopped does not count
the time it was stopped for.
"""

import threading
import time
from collections.abc import Mapping

import torch.distributed as dist

from pipeline_local.errors import NeighbourLostError
from pipeline_local.ranks.processes import identity
from pipeline_local.user_input.json_text import Facts
from pipeline_local.watch.stall import Sighting
from pipeline_local.watch.status import Position, RankStatus
from pipeline_local.watch.store import RankStore

BEAT_SECONDS = 1.0
"""Seconds between two heartbeats of a rank."""


class Laps:
    """Measures the seconds between two calls, capped, as this process may have been stopped.

    Args:
        most: the longest time that one lap may count, in seconds.
    """

    def __init__(self, most: float = 2 * BEAT_SECONDS) -> None:
        self._most = most
        self._last = time.monotonic()

    def lap(self) -> float:
        """Returns the seconds since the last lap."""
        now = time.monotonic()
        passed, self._last = now - self._last, now
        return min(passed, self._most)


class Heartbeats:
    """The heartbeat thread of one rank.

    Args:
        rank_store: the store, over a connection that nothing else uses.
        status: the status of this rank.

    Attributes:
        sightings: the positions of all ranks in the last round; replaced as a whole.
        rounds: the rounds completed so far. The count stands still while the store does not answer.
        broken: whether the store is gone.
        verdict: the verdict that a rank has set, if any.
    """

    def __init__(self, rank_store: RankStore, status: RankStatus) -> None:
        self._rank_store = rank_store
        self._status = status
        self._here = status.now
        self._age = 0.0
        self._laps = Laps()
        self._identity = identity()
        self._beats: dict[int, Facts] = {}
        self._ending = threading.Event()
        self._clean = False
        self._thread = threading.Thread(target=self._run, name="heartbeat", daemon=True)
        self.sightings: Mapping[int, Sighting] = {}
        self.rounds = 0
        self.broken = False
        self.verdict: Facts | None = None

    def introduce(self) -> None:
        """Sends the first beat from the calling thread, so that all ranks know this process.

        Raises:
            NeighbourLostError: the store is gone with the first rank.
        """
        self._beat(left=False)

    def start(self) -> None:
        """Starts the thread."""
        self._thread.start()

    def stop(self) -> None:
        """Ends the beats, without waiting for the end of a round."""
        self._ending.set()

    def leave(self, patience: float) -> None:
        """Sends the last beat, which says that this rank has ended without an error.

        Args:
            patience: seconds to wait for a store that does not answer.
        """
        self._clean = True
        self.stop()
        self._thread.join(patience)

    def identity(self, rank: int) -> Facts:
        """Returns the host and process of a rank; {} where they are not known."""
        return self._beats.get(rank, {})

    def _run(self) -> None:
        try:
            while not self._ending.is_set():
                self._round()
                self._ending.wait(BEAT_SECONDS)
            if self._clean:
                self._beat(left=True)
        except (dist.DistError, NeighbourLostError):
            self.broken = True

    def _round(self) -> None:
        passed = self._laps.lap()
        here = self._status.now
        self._age = self._age + passed if here is self._here else 0.0
        self._here = here
        self._beat(left=False)
        self._read(passed)
        self.verdict = self._rank_store.get_shared("verdict")
        self.rounds += 1

    def _beat(self, left: bool) -> None:
        value = {"rank": self._rank_store.rank, "beat": self.rounds, "left": left, "age": self._age}
        self._rank_store.set("beat", {**value, **self._identity, "position": self._here})

    def _read(self, passed: float) -> None:
        earlier, self._beats = self._beats, {s["rank"]: s for s in self._rank_store.get_all("beat")}
        self.sightings = {
            rank: Sighting(
                position=Position(*value["position"]),
                age=value["age"],
                silent=self._silence(rank, earlier.get(rank), value, passed),
                left=value["left"],
            )
            for rank, value in self._beats.items()
        }

    def _silence(self, rank: int, earlier: Facts | None, value: Facts, passed: float) -> float:
        if earlier is None or earlier["beat"] != value["beat"]:
            return 0.0
        return self.sightings[rank].silent + passed
