"""A trace of a stage: spans on the host's monotonic clock, comparable between ranks of a host.

On a GPU a span ends when its work is queued, not when it is done, except where the host waits; a
probe such as `DeviceTimes` can measure the device beside it.
"""

import time
from collections import defaultdict, deque
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from typing import NamedTuple

from pipeline_local.watch.status import RankStatus

CAPACITY = 20_000
"""The spans that a trace keeps of a run: some hundred steps."""

NO_MODULE = -1
"""The module of a span that belongs to none."""


class What(NamedTuple):
    """What a span is about.

    Attributes:
        act: recv, forward, send, signal, learn, apply, update or evaluate; beside the acts of a
            step: log, save (copies for a checkpoint) and write (a checkpoint's file).
        module: its index, or NO_MODULE.
        step: the index of the optimizer step; of work between steps, of the last one before it.
        microbatch: of the step, or the batch of an evaluation.
        content: of a message that is sent or received.
    """

    act: str
    module: int
    step: int
    microbatch: int = 0
    content: str = ""


class Span(NamedTuple):
    """Something that took time; `begin` and `end` in nanoseconds of the monotonic clock."""

    act: str
    module: int
    step: int
    microbatch: int
    content: str
    begin: int
    end: int


Probe = Callable[[What], AbstractContextManager[object]]
"""Measures the enclosed act in another way."""


class Trace:
    """Keeps the newest spans, and the seconds spent in each act since the last `take_seconds`.

    Args:
        capacity: the number of spans to keep.
        status: the rank's status, which follows the spans for the watchdog.

    Attributes:
        spans: those that are kept.
        records: whether spans are kept; seconds always are.
        probes: also measure each act.
    """

    def __init__(self, capacity: int = CAPACITY, status: RankStatus | None = None) -> None:
        self._status = status or RankStatus()
        self.spans: deque[Span] = deque(maxlen=capacity)
        self.records = True
        self.probes: tuple[Probe, ...] = ()
        self._nanoseconds: dict[str, int] = defaultdict(int)

    def span(
        self, act: str, module: int, step: int, microbatch: int = 0, content: str = ""
    ) -> AbstractContextManager[None]:
        """Records the enclosed work as one span; the arguments are those of `What`."""
        kind = _Probed if self.probes else _Recording
        return kind(self, self._status, (act, module, step, microbatch, content))

    @contextmanager
    def beside(self, act: str, step: int, module: int = NO_MODULE) -> Iterator[None]:
        """Records work that is none of the stage's acts, in any thread; it has no seconds."""
        records, begin = self.records, time.monotonic_ns()
        yield
        if records:
            self.spans.append(Span(act, module, step, 0, "", begin, time.monotonic_ns()))

    def keep(self, span: Span) -> None:
        """Adds a span that has ended."""
        if self.records:
            self.spans.append(span)
        self._nanoseconds[span.act] += span.end - span.begin

    def take_seconds(self) -> dict[str, float]:
        """Returns the seconds per act since the last call."""
        taken = {act: ns / 1e9 for act, ns in self._nanoseconds.items()}
        self._nanoseconds.clear()
        return taken


class _Recording:
    """A context manager that records a span: a class, as a step enters dozens and it is faster."""

    __slots__ = ("_begin", "_status", "_trace", "_what")

    def __init__(
        self, trace: Trace, status: RankStatus, what: tuple[str, int, int, int, str]
    ) -> None:
        self._trace = trace
        self._status = status
        self._what = what

    def __enter__(self) -> None:
        act, module, _, microbatch, _ = self._what
        self._status.enter(act, module + 1, microbatch)
        self._begin = time.monotonic_ns()

    def __exit__(self, *_: object) -> None:
        self._trace.keep(Span(*self._what, self._begin, time.monotonic_ns()))
        self._status.enter("between acts")


class _Probed(_Recording):
    """One that is also measured by the probes."""

    __slots__ = ("_measured",)

    def __enter__(self) -> None:
        self._measured = ExitStack()
        for probe in self._trace.probes:
            self._measured.enter_context(probe(What(*self._what)))
        super().__enter__()

    def __exit__(self, *error: object) -> None:
        super().__exit__(*error)
        self._measured.close()
