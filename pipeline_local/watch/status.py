"""What the main thread of this rank is doing: written by it, read by the watchdog's threads.

Written without a lock: one assignment of an immutable value per act. A new value, even an equal
one, is progress; nobody reads a clock for it.
"""

from collections.abc import Hashable, Iterator
from contextlib import contextmanager
from typing import NamedTuple

EVERYONE = -1
"""As a peer: all other ranks, when they meet."""


class Position(NamedTuple):
    """Where a rank is.

    Attributes:
        phase: start, step, evaluation, checkpoint or end.
        step: number of the step it is in, counted from 1; in other phases, of steps done.
        first: this kind of phase is new to the rank, which may have to compile or to open data.
        act: what it does.
        module: whose act it is, counted from 1; None: nobody's.
        microbatch: of the step or evaluation.
        peer: rank whose message it waits for, or who has to take one; EVERYONE; None: it works.
    """

    phase: str = "start"
    step: int = 0
    first: bool = True
    act: str = "setting up"
    module: int | None = None
    microbatch: int = 0
    peer: int | None = None


class RankStatus:
    """The position of one rank."""

    def __init__(self) -> None:
        self.now = Position()
        self._known: set[Hashable] = set()

    def enter(
        self, act: str, module: int | None = None, microbatch: int = 0, peer: int | None = None
    ) -> None:
        """Another act within the same phase."""
        phase, step, first = self.now[:3]
        self.now = Position(phase, step, first, act, module, microbatch, peer)

    @contextmanager
    def during(
        self, phase: str, step: int, kind: Hashable = None, act: str = "between acts"
    ) -> Iterator[None]:
        """The enclosed work is one phase.

        Args:
            phase: its name.
            step: of the run.
            kind: phases of one kind do the same; the first of each may take longer.
            act: the first one.
        """
        key = (phase, kind)
        self.now = Position(phase, step, key not in self._known, act)
        yield
        self._known.add(key)

    @contextmanager
    def waiting(self, peer: int) -> Iterator[None]:
        """The enclosed work waits for another rank."""
        here = self.now
        self.now = here._replace(peer=peer)
        yield
        self.now = here
