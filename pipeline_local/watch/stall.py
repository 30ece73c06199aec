"""Finds the rank that all others wait for: the ranks' positions in, a verdict out.

Pure functions.
"""

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Literal

from pipeline_local.errors import EXIT_NEIGHBOUR_LOST, EXIT_STALLED
from pipeline_local.watch.status import EVERYONE, Position

FIRST_TIMES = 10
"""The first phase of each kind may take this many times longer: compilation, cudnn, cold files."""

BEATS_MISSED = 3.0
"""Seconds without a heartbeat after which a rank counts as silent."""


@dataclass(frozen=True)
class Sighting:
    """The last known position of a rank.

    Attributes:
        position: the last position received from it.
        age: seconds that the rank had been there, by its own clock, when it reported that.
        silent: seconds since then, by this rank's clock.
        left: whether it has ended without an error.
    """

    position: Position
    age: float = 0.0
    silent: float = 0.0
    left: bool = False


@dataclass(frozen=True)
class Verdict:
    """The reason why all ranks end.

    Attributes:
        kind: lost: a process is dead; stalled: it makes no progress; raised: it reports its error.
        rank: the rank that is the cause.
        text: the message for display, in one line; empty where the rank reports its own error.
    """

    kind: Literal["lost", "stalled", "raised"]
    rank: int
    text: str = ""

    @property
    def exit_code(self) -> int:
        """The exit code of all other ranks."""
        return EXIT_STALLED if self.kind == "stalled" else EXIT_NEIGHBOUR_LOST

    def facts(self) -> dict[str, str | int]:
        """Returns the fields as a JSON object."""
        return asdict(self)


def find_stall(sightings: Mapping[int, Sighting], timeout: float) -> Verdict | None:
    """Returns a verdict on the rank that stalls the run; None if no rank does.

    That is a rank that has made no progress for `timeout` seconds and does not wait for another: a
    rank that waits is not the cause, but the rank that it waits for may be. So a chain of waits is
    followed to its end, and the cause is a rank that works, that is silent, or that is part of a
    cycle of waits.
    """
    present = {rank: s for rank, s in sightings.items() if not s.left}
    late = {rank for rank, s in present.items() if _is_late(s, timeout)}
    for rank in sorted(late):
        if _is_silent(present[rank], timeout):
            return Verdict("stalled", rank, _silence(rank, present))
        if present[rank].position.peer is None:
            return Verdict("stalled", rank, _work(rank, present))
    for rank in sorted(late):
        if circle := _circle(rank, present, late):
            return Verdict("stalled", rank, _circle_text(circle, present))
    return _all_wait(present, late)


def lost_verdict(rank: int, sightings: Mapping[int, Sighting]) -> Verdict:
    """Returns the verdict on a rank whose process is gone without an error message."""
    seen = f"; last seen {describe(rank, sightings[rank])}" if rank in sightings else ""
    waits = "".join(_who_waits(rank, sightings))
    gone = "its process is gone (killed or crashed), or its host or the network to it is"
    return Verdict("lost", rank, f"{gone}{seen}{waits}")


def describe(rank: int, sighting: Sighting) -> str:
    """Describes what a rank does, for a message: phase, step, module, microbatch, edge."""
    here = sighting.position
    doing = "waiting for the data" if _is_loading(here) else _act(rank, here)
    what = [doing]
    if here.module is not None:
        what.append(f"module {here.module}, microbatch {here.microbatch}")
    if here.phase == "step":
        what.append(f"step {here.step}")
    elif here.phase != "start":
        what.append(f"{here.phase} after step {here.step}")
    return ", ".join(what)


def _is_loading(here: Position) -> bool:
    """The first module's input comes from no rank; any replica of the first stage may wait."""
    return here.module == 1 and here.act == "recv" and here.peer is None


def _act(rank: int, here: Position) -> str:
    if here.peer is None:
        return f"in '{here.act}'"
    if here.peer == EVERYONE:
        return f"in '{here.act}', waiting for the other ranks"
    edge = f"edge {min(rank, here.peer)} -> {max(rank, here.peer)}"
    return f"in '{here.act}', waiting for rank {here.peer} on the {edge}"


def _limit(sighting: Sighting, timeout: float) -> float:
    return timeout * FIRST_TIMES if sighting.position.first else timeout


def _is_silent(sighting: Sighting, timeout: float) -> bool:
    return sighting.silent > max(timeout, BEATS_MISSED)


def _is_late(sighting: Sighting, timeout: float) -> bool:
    stayed = sighting.age + sighting.silent
    return _is_silent(sighting, timeout) or stayed > _limit(sighting, timeout)


def _circle(start: int, present: Mapping[int, Sighting], late: set[int]) -> list[int]:
    """Returns the late ranks that wait for each other; empty if `start` is in no such cycle."""
    seen: list[int] = []
    rank: int | None = start
    while rank in late and rank not in seen:
        seen.append(rank)
        rank = present[rank].position.peer
    return seen if rank == start else []


def _all_wait(present: Mapping[int, Sighting], late: set[int]) -> Verdict | None:
    """All ranks wait: one of them for a rank that has ended, or all of them for each other."""
    if late != set(present):
        return None
    for rank in sorted(late):
        peer = present[rank].position.peer
        if peer == EVERYONE or peer not in present:
            return Verdict("stalled", rank, _work(rank, present))
    return None


def _work(rank: int, present: Mapping[int, Sighting]) -> str:
    sighting = present[rank]
    seconds = sighting.age + sighting.silent
    waits = "".join(_who_waits(rank, present))
    return f"no progress for {seconds:.0f} s: {describe(rank, sighting)}{waits}{_HINT}"


def _silence(rank: int, present: Mapping[int, Sighting]) -> str:
    sighting = present[rank]
    waits = "".join(_who_waits(rank, present))
    return (
        f"no sign of life for {sighting.silent:.0f} s (stopped, or its host hangs); last seen"
        f" {describe(rank, sighting)}{waits}"
    )


def _circle_text(circle: list[int], present: Mapping[int, Sighting]) -> str:
    parts = [f"rank {rank} is {describe(rank, present[rank])}" for rank in circle]
    return "ranks wait for each other: " + "; ".join(parts)


def _who_waits(rank: int, sightings: Mapping[int, Sighting]) -> Iterator[str]:
    waiting = [r for r, s in sightings.items() if s.position.peer == rank and not s.left]
    for other in waiting[:1]:
        yield f"; rank {other} waits for it on the edge {min(rank, other)} -> {max(rank, other)}"


_HINT = " (parallel.timeout sets how long an act may take)"
