"""A discrete-event simulation: workers that compute, and links that carry their messages.

A worker is an iterator of acts, in order. Every channel has one sender and one receiver, and
delivers its messages in order. So the times do not depend on the order in which workers are
advanced: each one is advanced until it needs something whose time is not known yet.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from random import Random

from pipeline_local.placement.costs import Link


class DeadlockError(Exception):
    """All workers that are left wait for each other."""


@dataclass
class Channel:
    """Messages from one worker to another over their own link.

    As in gloo and NCCL, a transfer begins when both ends are ready: the message has been handed
    over, and the sender knows that the receive is posted.

    Attributes:
        link: latency and bandwidth.
        depth: number of messages that the sender may have in flight; one more waits for the oldest.
        ahead: whether the next receive is always posted; else it is once the message is needed.
        jitter: largest random delay in seconds, drawn for each message.
        random: the generator of these delays.
    """

    link: Link
    depth: float = math.inf
    ahead: bool = True
    jitter: float = 0.0
    random: Random = field(default_factory=lambda: Random(0))

    def __post_init__(self) -> None:
        """Start without messages in flight."""
        self._sent: list[tuple[float, float]] = []
        self._posted: list[float] = [0.0] if self.ahead else []
        self._gone: list[float] = []
        self._arrived: list[float] = []
        self._taken = 0

    def send(self, now: float, size: float) -> float | None:
        """Hand over a message; return when the sender continues, or None if not known yet."""
        oldest = len(self._sent) - self.depth
        if oldest >= len(self._gone):
            return None
        if oldest >= 0:
            now = max(now, self._gone[int(oldest)])
        self._sent.append((now, size))
        self._match()
        return now

    def recv(self, now: float) -> float | None:
        """Take the next message; return when it has arrived, or None if not known yet."""
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
        """Return when all messages have left the sender, or None if not known yet."""
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
"""Gloo's ring all-reduce: the largest segment, and how many segments may be in flight."""


@dataclass
class Group:
    """Workers that all-reduce tensors in a ring, one tensor after the other, as gloo does.

    Attributes:
        members: number of workers.
        link: the link from each worker to the next.
    """

    members: int
    link: Link

    def __post_init__(self) -> None:
        """Start without messages in flight."""
        self._begun: list[list[float]] = []
        self._ended: list[float] = []
        self._counts: dict[int, int] = {}

    def begin(self, now: float, size: float, member: int) -> None:
        """Start the next all-reduce for a member, whose part of `size` bytes is ready."""
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
        """Time at which each segment has passed all members once: half of an all-reduce."""
        own = max(math.ceil(size / SEGMENT_BYTES / self.members), SEGMENTS_UNDER_WAY)
        seconds = size / (own * self.members) / self.link.bytes_per_second
        free, there = begin, [begin] * SEGMENTS_UNDER_WAY
        for number in range(own * (self.members - 1)):  # a segment leaves once its recv is posted
            posted = there[number % SEGMENTS_UNDER_WAY]
            free = max(posted + self.link.latency_seconds, free) + seconds
            there[number % SEGMENTS_UNDER_WAY] = free + self.link.latency_seconds
        return max(there)

    def ended(self, member: int) -> float | None:
        """Return when all all-reduces of a member are done, or None if not known yet."""
        count = self._counts.get(member, 0)
        if count > len(self._ended):
            return None
        return self._ended[count - 1] if count else 0.0


@dataclass(frozen=True)
class Work:
    """Compute for some seconds.

    Attributes:
        seconds: duration.
        name: a label for the observer.
    """

    seconds: float
    name: str = ""


@dataclass(frozen=True)
class Send:
    """Hand over a message of `size` bytes."""

    channel: Channel
    size: float


@dataclass(frozen=True)
class Recv:
    """Wait for the next message."""

    channel: Channel


@dataclass(frozen=True)
class Sent:
    """Wait until all messages have left the sender."""

    channel: Channel


@dataclass(frozen=True)
class Reduce:
    """Start an all-reduce of `size` bytes in the group."""

    group: Group
    size: float


@dataclass(frozen=True)
class Reduced:
    """Wait until all started all-reduces are done."""

    group: Group


@dataclass(frozen=True)
class Update:
    """Compute the update that completes an optimizer step."""

    seconds: float


Act = Work | Send | Recv | Sent | Reduce | Reduced | Update
Program = Iterator[Act]
Observer = Callable[[int, Act, float, float], None]
"""Called for each finished act with its worker, the act, and its begin and end in seconds."""


@dataclass
class Worker:
    """One simulated process.

    Attributes:
        name: index of the worker.
        program: its acts, in order.
        observer: called for each finished act.
        clock: seconds since the start.
        busy: seconds spent computing.
        steps: end of each optimizer step, in seconds.
    """

    name: int
    program: Program
    observer: Observer | None = None
    clock: float = 0.0
    busy: float = 0.0
    steps: list[float] = field(default_factory=list)

    def __post_init__(self) -> None:
        """Take the first act."""
        self._act = next(self.program, None)

    @property
    def finished(self) -> bool:
        """Whether no act is left."""
        return self._act is None

    def advance(self) -> bool:
        """Perform acts as far as their times are known; return whether there was one."""
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
    """Run all programs to their ends.

    Args:
        programs: one for each worker.
        observer: called for each finished act; in order for one worker, not across workers.

    Raises:
        DeadlockError: all workers that are left wait for each other.
    """
    workers = [Worker(number, program, observer) for number, program in enumerate(programs)]
    while sum(worker.advance() for worker in workers):  # all of them, in every round
        pass
    if stuck := [str(worker.name) for worker in workers if not worker.finished]:
        raise DeadlockError(f"workers {', '.join(stuck)} wait for each other")
    return workers
