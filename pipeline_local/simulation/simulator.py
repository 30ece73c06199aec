"""A discrete-event simulation: workers that compute, and links that carry their messages.

A worker is an iterator of acts, in the order in which it does them. Every channel has one sender
and one receiver, and every link carries its messages in order, so the times do not depend on the
order in which workers are looked at: each goes on until it needs something whose time is not known.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from random import Random

from pipeline_local.placement.costs import Link


class DeadlockError(Exception):
    """Workers wait for each other."""


@dataclass
class Channel:
    """Messages from one worker to another over a link of their own.

    As gloo and NCCL do, a transfer begins when both ends want it: the message is there, and the
    other end has told that it waits for it.

    Attributes:
        link: latency and bandwidth.
        depth: messages that the sender may have under way; the next one waits for the oldest.
        ahead: the receiver always has the next receive posted; else only once it needs the message.
        jitter: most seconds by which a message may be late at random, for each one anew.
        random: where that is drawn from.
    """

    link: Link
    depth: float = math.inf
    ahead: bool = True
    jitter: float = 0.0
    random: Random = field(default_factory=lambda: Random(0))

    def __post_init__(self) -> None:
        """Nothing is under way."""
        self._sent: list[tuple[float, float]] = []
        self._posted: list[float] = [0.0] if self.ahead else []
        self._gone: list[float] = []
        self._arrived: list[float] = []
        self._taken = 0

    def send(self, now: float, size: float) -> float | None:
        """Hand a message over; the time at which the sender goes on, or None if it is unknown."""
        oldest = len(self._sent) - self.depth
        if oldest >= len(self._gone):
            return None
        if oldest >= 0:
            now = max(now, self._gone[int(oldest)])
        self._sent.append((now, size))
        self._match()
        return now

    def recv(self, now: float) -> float | None:
        """Take the next message; the time at which the receiver has it, or None if unknown."""
        if len(self._posted) == self._taken:
            self._posted.append(now)
            self._match()
        if len(self._arrived) == self._taken:
            return None
        now = max(now, self._arrived[self._taken])
        self._taken += 1
        if self.ahead:
            self._posted.append(now)
            self._match()
        return now

    def gone(self, now: float) -> float | None:
        """When all messages that were handed over have left the sender, or None if unknown."""
        if len(self._gone) < len(self._sent):
            return None
        return max([now, *self._gone[-1:]])

    def _match(self) -> None:
        for number in range(len(self._gone), min(len(self._sent), len(self._posted))):
            sent, size = self._sent[number]
            free = self._gone[-1] if self._gone else 0.0
            begin = max(sent, self._posted[number] + self.link.latency_seconds, free)
            gone = begin + size / self.link.bytes_per_second
            late = self.random.uniform(0.0, self.jitter)
            earlier = self._arrived[-1] if self._arrived else 0.0
            self._gone.append(gone)
            self._arrived.append(max(gone + self.link.latency_seconds + late, earlier))


SEGMENT_BYTES, SEGMENTS_UNDER_WAY = 2**20, 2
"""Gloo's ring sums at most so many bytes at a time, and goes on to a segment when that before last
is there."""


@dataclass
class Group:
    """Workers that sum tensors in a ring, one after the other, as gloo's allreduce does.

    Attributes:
        members: how many they are.
        link: from each to the next.
    """

    members: int
    link: Link

    def __post_init__(self) -> None:
        """Nothing is under way."""
        self._begun: list[list[float]] = []
        self._ended: list[float] = []
        self._counts: dict[int, int] = {}

    def begin(self, now: float, size: float, member: int) -> None:
        """A member has its part ready."""
        number = self._counts.get(member, 0)
        self._counts[member] = number + 1
        if number == len(self._begun):
            self._begun.append([])
        self._begun[number].append(now)
        if len(self._begun[number]) == self.members:
            free = self._ended[-1] if self._ended else 0.0
            scattered = self._around(max(free, *self._begun[number]), size)
            self._ended.append(self._around(scattered, size))

    def _around(self, begin: float, size: float) -> float:
        """When every member has had all segments but its own, once: half of a sum."""
        own = max(math.ceil(size / SEGMENT_BYTES / self.members), SEGMENTS_UNDER_WAY)
        seconds = size / (own * self.members) / self.link.bytes_per_second
        free, there = begin, [begin] * SEGMENTS_UNDER_WAY
        for number in range(
            own * (self.members - 1)
        ):  # a segment leaves when its receiver has told that it waits
            posted = there[number % SEGMENTS_UNDER_WAY]
            free = max(posted + self.link.latency_seconds, free) + seconds
            there[number % SEGMENTS_UNDER_WAY] = free + self.link.latency_seconds
        return max(there)

    def ended(self, member: int) -> float | None:
        """When all that this member has begun is done, or None if that is unknown."""
        count = self._counts.get(member, 0)
        if count > len(self._ended):
            return None
        return self._ended[count - 1] if count else 0.0


@dataclass(frozen=True)
class Work:
    """Compute.

    Attributes:
        seconds: of it.
        name: by which an observer knows it.
    """

    seconds: float
    name: str = ""


@dataclass(frozen=True)
class Send:
    """Hand a message of so many bytes over."""

    channel: Channel
    size: float


@dataclass(frozen=True)
class Recv:
    """Wait for the next message."""

    channel: Channel


@dataclass(frozen=True)
class Sent:
    """Wait until all messages have left."""

    channel: Channel


@dataclass(frozen=True)
class Reduce:
    """Begin to sum so many bytes with the group."""

    group: Group
    size: float


@dataclass(frozen=True)
class Reduced:
    """Wait until all sums are there."""

    group: Group


@dataclass(frozen=True)
class Update:
    """Compute the update that completes an optimizer step."""

    seconds: float


Act = Work | Send | Recv | Sent | Reduce | Reduced | Update
Program = Iterator[Act]
Observer = Callable[[int, Act, float, float], None]
"""Told of each act that is done: its worker, the act, when that was reached and when through."""


@dataclass
class Worker:
    """One process.

    Attributes:
        name: its number.
        program: what it does.
        clock: seconds since the start.
        busy: of them, computing.
        steps: when each optimizer step was complete.
        observer: who is told of its acts.
    """

    name: int
    program: Program
    observer: Observer | None = None
    clock: float = 0.0
    busy: float = 0.0
    steps: list[float] = field(default_factory=list)

    def __post_init__(self) -> None:
        """At the first act."""
        self._act = next(self.program, None)

    @property
    def finished(self) -> bool:
        """Nothing is left to do."""
        return self._act is None

    def advance(self) -> bool:
        """Go on as far as times are known; whether anything was done."""
        begun = self._act
        while self._act is not None:
            end = self._perform(self._act)
            if end is None:
                break
            if self.observer:
                self.observer(self.name, self._act, self.clock, end)
            self.clock = end
            self._act = next(self.program, None)
        return self._act is not begun

    def _perform(self, act: Act) -> float | None:
        match act:
            case Work(seconds, _):
                self.busy += seconds
                return self.clock + seconds
            case Send(channel, size):
                return channel.send(self.clock, size)
            case Recv(channel):
                return channel.recv(self.clock)
            case Sent(channel):
                return channel.gone(self.clock)
            case Reduce(group, size):
                group.begin(self.clock, size, self.name)
                return self.clock
            case Reduced(group):
                end = group.ended(self.name)
                return None if end is None else max(self.clock, end)
            case Update(seconds):
                self.busy += seconds
                self.steps.append(self.clock + seconds)
                return self.clock + seconds


def simulate(programs: Sequence[Program], observer: Observer | None = None) -> list[Worker]:
    """Let all workers finish.

    Args:
        programs: of the workers.
        observer: told of the acts of each in their order, but not of those of different workers.

    Raises:
        DeadlockError: they wait for each other.
    """
    workers = [Worker(number, program, observer) for number, program in enumerate(programs)]
    while sum(worker.advance() for worker in workers):  # all of them, in every round
        pass
    if stuck := [str(worker.name) for worker in workers if not worker.finished]:
        raise DeadlockError(f"workers {', '.join(stuck)} wait for each other")
    return workers
