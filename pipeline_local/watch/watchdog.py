"""The watchdog: no run hangs without an error message.

A daemon thread of every rank watches all ranks. When a process is dead, when a rank makes no
progress, or when one has raised, every rank ends within seconds, with an exit code that says why,
and exactly one of them reports it in one line: which rank, on which edge, in which step, in which
act.

    lost     its liveness link broke, or a neighbour's connection did: at once
    stalled  a rank that waits for no other has been in one act, or silent, for `parallel.timeout`
    raised   it reports so before it ends; its own message is the one line

The main thread may hang anywhere, so the process ends from this thread. The training thread is
never held up: it only notes its position (`watch/status.py`).
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
from typing import NoReturn, TypeVar

import torch.distributed as dist

from pipeline_local.console.footer import leave_terminal
from pipeline_local.data.loaders import remove_socket_folder
from pipeline_local.errors import (
    NeighbourLostError,
    RefusedElsewhereError,
    StalledError,
    StoppedError,
)
from pipeline_local.ranks.mesh import Mesh
from pipeline_local.ranks.processes import kill_stopped
from pipeline_local.ranks.rank import RankInfo
from pipeline_local.user_input.json_text import Facts
from pipeline_local.watch.heartbeat import Heartbeats, Laps
from pipeline_local.watch.liveness import LivenessEvent, LivenessLinks
from pipeline_local.watch.stall import BEATS_MISSED, Verdict, find_stall, lost_verdict
from pipeline_local.watch.status import RankStatus
from pipeline_local.watch.store import RankStore, reachable

T = TypeVar("T")

LOOK_SECONDS = 0.5
"""Longest time between two looks at the ranks' positions."""
GRACE_SECONDS = 1.0
"""How long a rank that reports its own error is given before the others end."""
PATIENCE_SECONDS = 2.0
"""Longest wait for a store that does not answer, and for ranks that leave."""
POLL_SECONDS = 0.01
"""Seconds between two looks at which ranks have left."""
UNWIND_SECONDS = 10.0
"""Longest time that an interrupted main thread may take to end."""
CLEAN_EXITS = (RefusedElsewhereError, StoppedError, SystemExit)
"""Exceptions with which a rank leaves without ending the others."""
TORCHS_OWN = {"TORCH_NCCL_ASYNC_ERROR_HANDLING": "0"}
"""Torch's watchdog of nccl ends a process (SIGABRT) that has lost another one, perhaps before this
one has said so. It reads this as groups are made: it shall not."""
ADDRESS_TIMEOUT = timedelta(minutes=30)
"""Longest wait for the address of the first rank's liveness port."""


class Watchdog:
    """Watches all ranks while its context lasts. All of them enter it before anything else.

    Args:
        rank_store: the store, shared with all other ranks.
        rank_info: this rank.
        timeout: seconds that a rank may stay in one act.
        mesh: of all ranks.

    Attributes:
        status: the position of this rank, for the training thread to update.

    Raises:
        StalledError: on leaving the context, where there is one rank only: its main thread made no
            progress, and could be interrupted.
    """

    def __init__(
        self,
        rank_store: RankStore,
        rank_info: RankInfo,
        timeout: float,
        mesh: Mesh,
    ) -> None:
        self._mesh = mesh
        self.status = RankStatus()
        self._rank_info = rank_info
        self._timeout = timeout
        self._rank_store = rank_store
        self._verdict_store = rank_store.clone()
        self._heart = Heartbeats(rank_store.clone(), self.status)
        self._thread = threading.Thread(target=self._watch, name="watchdog", daemon=True)
        self._closing = threading.Event()
        self._suspect: int | None = None
        self._left: set[int] = set()
        self._verdict: Verdict | None = None
        self._stuck = 0.0
        self._rounds = 0

    @property
    def judged(self) -> bool:
        """Whether the run has failed: the main thread is to end, as soon as it is interrupted."""
        return self._verdict is not None

    def __enter__(self) -> "Watchdog":
        self._told_torch = {name: v for name, v in TORCHS_OWN.items() if name not in os.environ}
        os.environ.update(self._told_torch)
        self._heart.introduce()
        self._links: LivenessLinks = self._connect()
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
            if self._left_cleanly(peer):  # as a third rank has refused the run
                self._leave()
                raise RefusedElsewhereError from None
        if error is not None and not isinstance(error, CLEAN_EXITS):
            self._report_own_error()
        elif self._rank_store.served_by_rank_0 and not isinstance(error, RefusedElsewhereError):
            self._let_the_others_leave()  # one that refuses ends by itself
        self._leave()

    def _connect(self) -> LivenessLinks:
        rank_info = self._rank_info
        if rank_info.world_size == 1:
            return LivenessLinks()
        if rank_info.rank == 0:
            links = LivenessLinks.host(rank_info.world_size)
            self._rank_store.set("liveness", links.address)
            return links
        with reachable():  # no watchdog runs yet
            address = self._rank_store.wait("liveness", 0, ADDRESS_TIMEOUT)
        return LivenessLinks.join(self._rank_store.host, address, rank_info.rank)

    # -- the main thread's way out -----------------------------------------------------------------

    def _leave(self) -> None:
        self._closing.set()
        self._links.wake()
        self._thread.join(PATIENCE_SECONDS)
        self._heart.leave(PATIENCE_SECONDS)
        self._links.close()
        for name in self._told_torch:
            os.environ.pop(name, None)

    def _let_the_others_leave(self) -> None:
        """The first rank serves the store, which the others use until they have left."""
        others = self._rank_info.world_size - 1 if self._rank_info.rank == 0 else 0
        until = time.monotonic() + PATIENCE_SECONDS
        while len(self._left) < others and self._thread.is_alive() and time.monotonic() < until:
            time.sleep(POLL_SECONDS)

    def _await_the_end(self, suspect: int | None) -> None:
        """A connection broke: the watching thread finds out why, and ends this process."""
        if suspect is not None:
            self._suspect = suspect
        self._links.wake()
        until = time.monotonic() + UNWIND_SECONDS
        while self._thread.is_alive() and time.monotonic() < until:
            if self._left_cleanly(suspect):
                return
            self._thread.join(LOOK_SECONDS)

    def _report_own_error(self) -> None:
        """Spares the other ranks the search for a reason. A verdict that is already set counts."""
        if self._rank_info.world_size == 1:
            return
        if self._in_main_thread:  # the launcher must not cut the message off
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
        verdict, elected = self._elect(self._own)
        if not elected:
            self._thread.join(UNWIND_SECONDS)
        self._closing.set()
        self._links.broadcast({"verdict": verdict.facts()})

    def _left_cleanly(self, rank: int | None) -> bool:
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
        for event in self._links.events(seconds):
            self._handle(event)

    def _handle(self, event: LivenessEvent) -> None:
        if event.facts is None:
            self._suspect = event.rank
        elif "left" in event.facts:
            self._left.add(event.rank)
            if event.rank == 0 and self._rank_store.served_by_rank_0:
                self._heart.stop()  # its store ends with it
        elif "verdict" in event.facts:
            self._accept(Verdict(**event.facts["verdict"]))

    def _accept(self, verdict: Verdict) -> None:
        """Takes over the verdict of another rank; this rank's own error needs no action."""
        if verdict != self._own and self._verdict is None:
            self._verdict = verdict

    def _notice_rounds(self, passed: float) -> None:
        rounds = self._heart.rounds
        self._stuck = 0.0 if rounds != self._rounds else self._stuck + passed
        self._rounds = rounds

    def _judge(self) -> Verdict | None:
        """Returns the verdict of another rank, or of this one; None while all goes well."""
        if self._heart.verdict is not None:
            self._accept(_verdict(self._heart.verdict))
        if self._verdict is not None:
            return self._verdict
        if self._suspect is not None and self._suspect not in self._left:
            return lost_verdict(self._suspect, self._heart.sightings)
        if 0 in self._left:
            return None  # and its store with it: the run is over
        if self._heart.broken and self._stuck > PATIENCE_SECONDS:
            return lost_verdict(0, self._heart.sightings)
        if self._stuck > max(self._timeout, BEATS_MISSED):
            return Verdict("stalled", 0, f"the store, {self._rank_store.server}, does not answer")
        return find_stall(self._heart.sightings, self._timeout)

    @property
    def _own(self) -> Verdict:
        return Verdict("raised", self._rank_info.rank)

    # -- the end -----------------------------------------------------------------------------------

    def _end(self, verdict: Verdict) -> None:
        """Agrees on one verdict, lets one rank report it, and ends this process."""
        self._heart.stop()
        if self._rank_info.world_size == 1:
            self._interrupt(verdict)
            return
        # now: a launcher may end this rank right after the message
        _within(GRACE_SECONDS, lambda: [stream.flush() for stream in (sys.stdout, sys.stderr)])
        if self._verdict is None:
            self._verdict, elected = self._elect(verdict)
            if self._verdict == self._own:
                return  # the main thread was faster, and is about to end with its error
            if elected:
                _write(self._line(self._verdict))
        self._links.broadcast({"verdict": self._verdict.facts()})
        if self._verdict.kind == "raised":
            if self._closing.wait(GRACE_SECONDS):
                return  # the main thread has noticed it otherwise, and leaves by itself
        elif self._verdict.kind == "stalled":
            self._kill(self._verdict.rank)
        _end_at_once(self._verdict)

    def _line(self, verdict: Verdict) -> str:
        """The message, behind a prefix with the stage and rank that it is about."""
        return f"{self._mesh.name(verdict.rank)} error: {verdict.text}"

    def _elect(self, verdict: Verdict) -> tuple[Verdict, bool]:
        """Returns the verdict that all ranks use, the first one set; and whether it is this rank's.

        Without a store the ranks cannot agree, so who reports is fixed beforehand.
        """
        if verdict.kind == "lost" and verdict.rank == 0 and self._rank_store.served_by_rank_0:
            return verdict, self._reports_on(verdict.rank)
        claim = {"by": self._rank_info.rank, **verdict.facts()}
        value = _within(PATIENCE_SECONDS, lambda: self._verdict_store.compare_set("verdict", claim))
        if value is None:
            if threading.current_thread() is self._thread:
                self._catch_up(0.0)  # its server may have sent one, and be gone since
            if self._verdict is not None:
                return self._verdict, False
            return verdict, self._rank_info.rank == verdict.rank or self._reports_on(verdict.rank)
        return _verdict(value), value["by"] == self._rank_info.rank

    def _reports_on(self, rank: int) -> bool:
        """Whether this rank reports on another one: the first rank of each host does, as hosts may
        be cut off from each other; of the host of that one only where there is no other host. Whose
        first heartbeat has not come yet is taken to be on this host."""
        mine, ranks = self._rank_info.rank, range(self._rank_info.world_size)
        known = {each: self._heart.identity(each).get("host") for each in ranks}
        host = {each: known[mine] if name is None else name for each, name in known.items()}
        others = [other for other in ranks if other != rank]
        far = [other for other in others if host[other] != host[rank]]
        here = [other for other in far or others if host[other] == host[mine]]
        return mine in here[:1]

    def _kill(self, rank: int) -> None:
        sighting = self._heart.sightings.get(rank)
        silent = sighting is not None and sighting.silent > BEATS_MISSED
        kill_stopped(self._heart.identity(rank), silent)

    def _interrupt(self, verdict: Verdict) -> None:
        """There is one rank only: its main thread raises, unless it cannot be interrupted."""
        self._verdict = verdict
        if not self._in_main_thread:  # another program, which runs this in a thread of its own
            _write(self._line(verdict))
            return
        ident = threading.main_thread().ident
        assert ident is not None
        signal.pthread_kill(ident, signal.SIGINT)
        if not self._closing.wait(UNWIND_SECONDS):
            _write(self._line(verdict))
            _end_at_once(verdict)


def _end_at_once(verdict: Verdict) -> NoReturn:
    remove_socket_folder()
    leave_terminal()
    os._exit(verdict.exit_code)


def _verdict(value: Facts) -> Verdict:
    return Verdict(value["kind"], value["rank"], value["text"])


def _write(line: str) -> None:
    """Writes past sys.stderr, whose lock the hanging main thread may hold.

    Where nobody can read it, as of a closed pipe or on a full disk, the end goes on.
    """
    with suppress(OSError):
        os.write(2, f"{line}\n".encode())


def _within(seconds: float, function: Callable[[], T]) -> T | None:
    """Returns the function's result; None if it takes longer or fails."""
    results: list[T] = []

    def call() -> None:
        with suppress(Exception):
            results.append(function())

    thread = threading.Thread(target=call, daemon=True)
    thread.start()
    thread.join(seconds)
    return results[0] if results else None
