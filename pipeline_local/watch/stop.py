"""The stop: after a signal to any rank, all ranks finish the same step, save it, and leave.

No barrier, no acknowledgement, no race; each rank reads the store once per step:

1.  A signalled rank only notes the signal. At its next step boundary it sets a request.
2.  The first rank reads the store at each of its boundaries. Before it sends anything of step T, it
    sets "T is the last step", waits until the store has it, and does step T.
3.  Every other rank reads the store at its own boundaries, too. It cannot be about to start T + 1
    before it has received what the first rank sent, directly or from stage to stage, in step T: its
    microbatch, or gradients that are added up with those of that microbatch. That was sent after
    the value was set, so the rank is certain to see it by then. Earlier reads may miss it, and need
    not see it.

So every rank does step T, and none starts T + 1. What the run plan wants between the two (an
evaluation, a checkpoint) is done as usual: a resumed run repeats nothing and leaves out nothing.
Where the run plan ends with step T, or before it, nobody is about to start a step any more. The run
is then complete for all ranks, whether they have seen the value or not.

Where the host does not wait for what it receives, as with nccl, point 3 holds for the device only:
its host may have queued many further steps. So the host goes ahead by one step at most (`Lead`). It
is about to start T + 2 only once its device has done step T, and with it has received all of that.
There the first rank sets "T + 1 is the last step" before it sends anything of step T.
"""

import signal
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from datetime import timedelta
from types import FrameType
from typing import Any

import torch.distributed as dist

from pipeline_local.blueprint.run_plan import Action, Save
from pipeline_local.console.screen import announce_interrupt
from pipeline_local.errors import NeighbourLostError
from pipeline_local.learning.step import Step
from pipeline_local.process import early
from pipeline_local.process.early import STOP_SIGNALS
from pipeline_local.user_input.json_text import Facts
from pipeline_local.watch.store import RankStore

CALLBACK = "callback"
"""Stands for a signal's name where a callback has asked to stop."""
SAME_INTERRUPT_SECONDS = 0.5
"""Nobody presses Ctrl-C twice within that, and a launcher passes it on much sooner."""


class Stop:
    """Decides when this rank leaves the run plan early. A context around all that may be stopped.

    On exit it restores the signal handlers, but for a signal whose handler was replaced meanwhile
    (by `Watchdog`: a rank that reports its own error must not be cut off).

    Args:
        rank_store: the store of all ranks.
    """

    def __init__(self, rank_store: RankStore) -> None:
        self._rank_store = rank_store
        self._look = self._decide if rank_store.rank == 0 else self._learn
        self._earlier: dict[int, Any] = {}
        self._signal: str | None = None
        self._interrupted: float | None = None
        self._ends_at_once: Callable[[], bool] = lambda: False
        self._last: int | None = None
        self._lead = 0
        self._asked_by = CALLBACK
        self.by_signal = False
        """Whether the run plan has been left early, and a signal, no callback, is the reason."""
        self.after: int | None = None
        """The optimizer steps done, once the run plan has been left early."""

    def __enter__(self) -> "Stop":
        return self

    def listen(self, ends_at_once: Callable[[], bool] = lambda: False) -> None:
        """Treats `STOP_SIGNALS` as requests to stop from now on; does so in the main thread only.

        Until then SIGTERM and SIGINT end the process, as it may wait for other ranks before a
        watchdog runs; a SIGUSR1 that the command line has noted counts from now on. A second SIGINT
        (Ctrl-C) raises KeyboardInterrupt.

        Args:
            ends_at_once: whether the first one does, as the watchdog sends it to a rank that hangs.
        """
        self._ends_at_once = ends_at_once
        if threading.current_thread() is threading.main_thread():
            self._earlier = {number: signal.signal(number, self._note) for number in STOP_SIGNALS}
            if early.take():
                self._note(signal.SIGUSR1, None)

    def __exit__(self, *_: object) -> None:
        for number, handler in self._earlier.items():
            if signal.getsignal(number) == self._note:
                signal.signal(number, signal.SIG_DFL if handler is None else handler)

    def request(self) -> None:
        """Ask all ranks to end after the same step, as a callback does on any of them."""
        self._signal = self._signal or CALLBACK

    def follow(self, actions: Iterable[Action], lead: int = 0) -> Iterator[Action]:
        """Yields the actions of the run plan up to its end, or to the stop and its checkpoint.

        Args:
            actions: of the run plan.
            lead: the steps that hosts may have queued when they start another one, and whose
                messages they have perhaps not received; the same on all ranks.

        Raises:
            NeighbourLostError: the store is gone with the first rank.
        """
        self._lead = lead
        saved = -1
        for action in actions:
            if isinstance(action, Step) and self._over(action.number):
                self.after = action.number
                self.by_signal = self._asked_by != CALLBACK
                if saved < action.number:
                    yield Save(action.number)
                return
            yield action
            if isinstance(action, Save):
                saved = action.number

    def leave_together(self, timeout: timedelta) -> None:
        """Waits until all ranks have written their part.

        A launcher kills all ranks soon after the first one has ended, the first rank may serve the
        store, and a suspended rank can only be ended by one that is still running.
        """
        self._rank_store.set("done", {})
        if self._rank_store.rank == 0:
            self._rank_store.gather("done", timeout)
            self._rank_store.set("released", {})
            return
        # where the first rank is gone, it has seen the values of all ranks
        with suppress(dist.DistError, NeighbourLostError):
            self._rank_store.wait("released", 0, timeout)

    def _note(self, number: int, _: FrameType | None) -> None:
        self._signal = signal.Signals(number).name
        if number == signal.SIGINT:
            self._interrupt()

    def _interrupt(self) -> None:
        """A launcher may pass on what a terminal sends to all: what comes that soon is the same."""
        now = time.monotonic()
        again = self._interrupted is not None and now - self._interrupted > SAME_INTERRUPT_SECONDS
        if again or self._ends_at_once():
            raise KeyboardInterrupt
        if self._interrupted is None:
            self._interrupted = now
            if self._rank_store.rank == 0:
                announce_interrupt()

    def _over(self, step: int) -> bool:
        """Whether `step`, which is about to begin, comes after the last one."""
        if self._last is None:
            self._last = self._look(step)
        return self._last is not None and step > self._last

    def _decide(self, step: int) -> int | None:
        asked = self._rank_store.get_shared("stop asked") or {"signal": self._signal}
        if asked["signal"] is None:
            return None
        last = {"last": step + self._lead, "signal": asked["signal"]}
        # it waits for the store's answer, which `set_shared` does not
        return self._followed(self._rank_store.compare_set("stop", last))

    def _learn(self, _: int) -> int | None:
        if self._signal is not None:
            self._rank_store.set_shared("stop asked", {"signal": self._signal})
        value = self._rank_store.get_shared("stop")
        return None if value is None else self._followed(value)

    def _followed(self, value: Facts) -> int:
        self._asked_by = str(value["signal"])
        return int(value["last"])
