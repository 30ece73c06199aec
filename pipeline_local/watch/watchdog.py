"""The watchdog: no run hangs in silence.

A daemon thread of every rank watches all of them. When a process is dead, when a rank does not go
on, or when one has raised, every rank ends within seconds, with an exit code that says why, and
exactly one of them tells it in one line: which rank, on which edge, in which step, doing what.

    lost     its lifeline broke, or a neighbour's connection did: at once
    stalled  a rank that waits for nobody has been in one act, or silent, for `parallel.timeout`
    raised   it says so before it ends; its own message is the one line

The main thread may hang anywhere, so the process ends from this thread. The training thread is
never held up: it only notes where it is (`watch/status.py`).
"""

import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from datetime import timedelta
from types import TracebackType
from typing import TypeVar

import torch.distributed as dist

from pipeline_local.errors import (
    NeighbourLostError,
    RefusedElsewhereError,
    StalledError,
    StoppedError,
)
from pipeline_local.ranks.processes import kill_stopped
from pipeline_local.ranks.rank import RankInfo
from pipeline_local.watch.heartbeat import Heartbeats, Laps
from pipeline_local.watch.liveness import LivenessEvent, LivenessLinks
from pipeline_local.watch.stall import BEATS_MISSED, Verdict, find_stall, of_death
from pipeline_local.watch.status import RankStatus
from pipeline_local.watch.store import Facts, RankStore, reachable

T = TypeVar("T")

LOOK_SECONDS = 0.5
GRACE_SECONDS = 1.0
"""A rank that tells its own error is given this long before the others end."""
PATIENCE_SECONDS = 2.0
"""Longest wait for a store that does not answer."""
UNWIND_SECONDS = 10.0
"""An interrupted main thread may take this long to end."""
PEACEFUL = (RefusedElsewhereError, StoppedError, SystemExit)
"""With these a rank leaves without being anybody's reason to end."""
MEETING = timedelta(minutes=30)


class Watchdog:
    """Watches all ranks while its context lasts. Entered by all of them, as the first thing.

    Args:
        rank_store: of this rank, shared with all others.
        rank_info: this rank.
        timeout: seconds that a rank may stay in one act.

    Raises:
        StalledError: on leaving the context, where there is one rank only: its main thread, which
            had not gone on, could be interrupted.
    """

    def __init__(self, rank_store: RankStore, rank_info: RankInfo, timeout: float) -> None:
        self.status = RankStatus()
        self._rank_info = rank_info
        self._timeout = timeout
        self._rank_store = rank_store
        self._ballot_store = rank_store.clone()
        self._heart = Heartbeats(rank_store.clone(), self.status)
        self._thread = threading.Thread(target=self._watch, name="watchdog", daemon=True)
        self._closing = threading.Event()
        self._suspect: int | None = None
        self._left: set[int] = set()
        self._verdict: Verdict | None = None
        self._stuck = 0.0
        self._rounds = 0

    def __enter__(self) -> "Watchdog":
        self._heart.introduce()
        self._lines: LivenessLinks = self._connect()
        self._in_main_thread = threading.current_thread() is threading.main_thread()
        self._heart.start()
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None
    ) -> None:
        if isinstance(error, KeyboardInterrupt) and self._verdict is not None:
            self._leave()
            raise StalledError(self._verdict.text) from None
        if isinstance(error, (NeighbourLostError, dist.DistError)):
            peer = error.peer if isinstance(error, NeighbourLostError) else None
            self._await_the_end(peer)
            if self._left_in_peace(peer):  # as a third rank has refused the run
                self._leave()
                raise RefusedElsewhereError from None
        if error is not None and not isinstance(error, PEACEFUL):
            self._tell_of_own_error()
        self._leave()

    def _connect(self) -> LivenessLinks:
        rank_info = self._rank_info
        if rank_info.world_size == 1:
            return LivenessLinks()
        if rank_info.rank == 0:
            lines = LivenessLinks.host(rank_info.world_size)
            self._rank_store.set("lifeline", lines.address)
            return lines
        with reachable():  # nobody watches yet
            address = self._rank_store.wait("lifeline", 0, MEETING)
        return LivenessLinks.join(
            os.environ.get("MASTER_ADDR", "localhost"), address, rank_info.rank
        )

    # -- the main thread's way out -----------------------------------------------------------------

    def _leave(self) -> None:
        self._closing.set()
        self._lines.wake()
        self._thread.join(PATIENCE_SECONDS)
        self._heart.leave(PATIENCE_SECONDS)
        self._lines.close()

    def _await_the_end(self, suspect: int | None) -> None:
        """The connection to somebody broke: the watching thread finds out why, and ends us all."""
        if suspect is not None:
            self._suspect = suspect
        self._lines.wake()
        until = time.monotonic() + UNWIND_SECONDS
        while self._thread.is_alive() and time.monotonic() < until:
            if self._left_in_peace(suspect):
                return
            self._thread.join(LOOK_SECONDS)

    def _tell_of_own_error(self) -> None:
        """Nobody else needs to look for a reason. If there is another one already, it counts."""
        if self._rank_info.world_size == 1:
            return
        if self._in_main_thread:  # the launcher must not cut the message off
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
        verdict, elected = self._elect(self._own)
        if not elected:
            self._thread.join(UNWIND_SECONDS)
        self._closing.set()
        self._lines.tell({"verdict": verdict.facts()})

    def _left_in_peace(self, rank: int | None) -> bool:
        return rank in self._left and self._verdict is None

    # -- the watching thread -----------------------------------------------------------------------

    def _watch(self) -> None:
        laps = Laps()
        while not self._closing.is_set():
            self._catch_up(LOOK_SECONDS)
            self._notice_rounds(laps.lap())
            verdict = self._judge()
            if verdict is not None and not self._closing.is_set():
                self._end(verdict)
                return

    def _catch_up(self, seconds: float) -> None:
        for news in self._lines.news(seconds):
            self._hear(news)

    def _hear(self, news: LivenessEvent) -> None:
        if news.facts is None:
            self._suspect = news.rank
        elif "left" in news.facts:
            self._left.add(news.rank)
            if news.rank == 0 and self._rank_store.served_by_rank_0:
                self._heart.stop()  # its store ends with it
        elif "verdict" in news.facts:
            self._accept(Verdict(**news.facts["verdict"]))

    def _accept(self, verdict: Verdict) -> None:
        """The verdict of another rank; this one's own error is no news."""
        if verdict != self._own and self._verdict is None:
            self._verdict = verdict

    def _notice_rounds(self, passed: float) -> None:
        rounds = self._heart.rounds
        self._stuck = 0.0 if rounds != self._rounds else self._stuck + passed
        self._rounds = rounds

    def _judge(self) -> Verdict | None:
        """The verdict of another rank, or this one's own."""
        if self._heart.verdict is not None:
            self._accept(_verdict(self._heart.verdict))
        if self._verdict is not None:
            return self._verdict
        if self._suspect is not None and self._suspect not in self._left:
            return of_death(self._suspect, self._heart.sightings)
        if 0 in self._left:
            return None  # and its store with it: the run is over
        if self._heart.broken and self._stuck > PATIENCE_SECONDS:
            return of_death(0, self._heart.sightings)
        if self._stuck > max(self._timeout, BEATS_MISSED):
            return Verdict("stalled", 0, f"the store, {self._rank_store.server}, does not answer")
        return find_stall(self._heart.sightings, self._timeout)

    @property
    def _own(self) -> Verdict:
        return Verdict("raised", self._rank_info.rank)

    # -- the end -----------------------------------------------------------------------------------

    def _end(self, verdict: Verdict) -> None:
        """Agree on one verdict, let one rank tell it, and end this process."""
        self._heart.stop()
        if self._rank_info.world_size == 1:
            self._interrupt(verdict)
            return
        # now: a launcher may end this rank right after the line
        _within(GRACE_SECONDS, lambda: [stream.flush() for stream in (sys.stdout, sys.stderr)])
        if self._verdict is None:
            self._verdict, elected = self._elect(verdict)
            if self._verdict == self._own:
                return  # the main thread was quicker, and is about to end with its error
            if elected:
                _write(self._verdict.line)
        self._lines.tell({"verdict": self._verdict.facts()})
        if self._verdict.kind == "raised":
            if self._closing.wait(GRACE_SECONDS):
                return  # the main thread has heard of it otherwise, and leaves by itself
        elif self._verdict.kind == "stalled":
            self._kill(self._verdict.rank)
        os._exit(self._verdict.exit_code)

    def _elect(self, verdict: Verdict) -> tuple[Verdict, bool]:
        """The verdict that counts for all, the first one set; and whether it is this rank's.

        Without a store to set it in, the ranks cannot agree: one of them is fixed beforehand.
        """
        if verdict.kind == "lost" and verdict.rank == 0 and self._rank_store.served_by_rank_0:
            return verdict, self._rank_info.rank == self._deputy(verdict.rank)
        claim = {"by": self._rank_info.rank, **verdict.facts()}
        value = _within(PATIENCE_SECONDS, lambda: self._ballot_store.compare_set("verdict", claim))
        if value is None:
            if threading.current_thread() is self._thread:
                self._catch_up(0.0)  # its server may have told, and be gone since
            if self._verdict is not None:
                return self._verdict, False
            return verdict, self._rank_info.rank in (verdict.rank, self._deputy(verdict.rank))
        return _verdict(value), value["by"] == self._rank_info.rank

    def _deputy(self, rank: int) -> int:
        """Who speaks about a rank: one on another host if possible; its whole host may be gone."""
        others = [other for other in range(self._rank_info.world_size) if other != rank]
        host = self._heart.identity(rank).get("host")
        far = [other for other in others if self._heart.identity(other).get("host", host) != host]
        return (far or others)[0]

    def _kill(self, rank: int) -> None:
        sighting = self._heart.sightings.get(rank)
        silent = sighting is not None and sighting.silent > BEATS_MISSED
        kill_stopped(self._heart.identity(rank), silent)

    def _interrupt(self, verdict: Verdict) -> None:
        """Nobody else is concerned: the main thread raises, unless it hangs too deep for that."""
        self._verdict = verdict
        if not self._in_main_thread:  # somebody else's program, in a thread of its own
            _write(verdict.line)
            return
        ident = threading.main_thread().ident
        assert ident is not None
        signal.pthread_kill(ident, signal.SIGINT)
        if not self._closing.wait(UNWIND_SECONDS):
            _write(verdict.line)
            os._exit(verdict.exit_code)


def _verdict(value: Facts) -> Verdict:
    return Verdict(value["kind"], value["rank"], value["text"])


def _write(line: str) -> None:
    """Past sys.stderr, whose lock the hanging main thread may hold."""
    os.write(2, f"{line}\n".encode())


def _within(seconds: float, function: Callable[[], T]) -> T | None:
    """What the function gives, unless it hangs for longer or fails."""
    results: list[T] = []

    def call() -> None:
        with suppress(Exception):
            results.append(function())

    thread = threading.Thread(target=call, daemon=True)
    thread.start()
    thread.join(seconds)
    return results[0] if results else None
