"""What the main thread of this rank is doing: written by it, read by the watchdog's threads.

Written without a lock: one assignment of an immutable value per act. A new value, even an equal
one, is progress, so the main thread reads no clock.
"""

from collections.abc import Hashable, Iterator
from contextlib import contextmanager
from typing import NamedTuple

EVERYONE = -1
"""The `peer` of a rank that waits for all other ranks."""


class Position(NamedTuple):
    """The position of a rank: what it does at the moment.

    Attributes:
        phase: start, step, evaluation, checkpoint or end.
        step: the number of the step, counted from 1; in other phases, the number of steps done.
        first: whether it is the rank's first phase of this kind, which may compile or open data.
        act: the name of what it does.
        module: the module that the act belongs to, counted from 1; None if it belongs to none.
        microbatch: the microbatch of the step, or the batch of the evaluation.
        peer: the rank whose message it waits for, or that has to receive one from it; EVERYONE; or
            None if it waits for no rank.
    """

    phase: str = "start"
    step: int = 0
    first: bool = True
    act: str = "setting up"
    module: int | None = None
    microbatch: int = 0
    peer: int | None = None


class RankStatus:
    """The position of one rank.

    Attributes:
        now: the current position.
    """

    def __init__(self) -> None:
        self.now = Position()
        self._known: set[Hashable] = set()

    def enter(
        self, act: str, module: int | None = None, microbatch: int = 0, peer: int | None = None
    ) -> None:
        """Notes that another act of the same phase begins."""
        phase, step, first = self.now[:3]
        self.now = Position(phase, step, first, act, module, microbatch, peer)

    @contextmanager
    def during(
        self, phase: str, step: int, kind: Hashable = None, act: str = "between acts"
    ) -> Iterator[None]:
        """Notes that the enclosed work is one phase.

        Args:
            phase: the name of the phase.
            step: the step of the run.
            kind: phases of one kind do the same work; the first of each kind may take longer.
            act: the first act of the phase.
        """
        key = (phase, kind)
        self.now = Position(phase, step, key not in self._known, act)
        yield
        self._known.add(key)

    @contextmanager
    def waiting(self, peer: int) -> Iterator[None]:
        """Notes that the enclosed work waits for another rank."""
        here = self.now
        self.now = here._replace(peer=peer)
        yield
        self.now = here
