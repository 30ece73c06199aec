"""A trace of a stage: spans on the host's monotonic clock, comparable between ranks of a host.

On a GPU a span ends when its work is queued, not when it is done, except where the host waits.
"""

import json
import time
from collections import defaultdict, deque
from contextlib import AbstractContextManager
from pathlib import Path
from typing import NamedTuple

from pipeline_local.record import atomic
from pipeline_local.watch.status import RankStatus


class Span(NamedTuple):
    """One act of one module; times in nanoseconds of the monotonic clock."""

    act: str
    module: int
    step: int
    microbatch: int
    begin: int
    end: int


class Trace:
    """Keeps the newest spans, and the seconds spent in each act since the last `take_seconds`.

    Args:
        capacity: the number of spans to keep.
        status: the rank's status, which follows the spans for the watchdog.
    """

    def __init__(self, capacity: int = 20_000, status: RankStatus | None = None) -> None:
        self._status = status or RankStatus()
        self.spans: deque[Span] = deque(maxlen=capacity)
        self._nanoseconds: dict[str, int] = defaultdict(int)

    def span(
        self, act: str, module: int, step: int, microbatch: int = 0
    ) -> AbstractContextManager[None]:
        """Records the enclosed work as one span."""
        return _Recording(self, self._status, act, module, step, microbatch)

    def keep(self, span: Span) -> None:
        """Adds a span that has ended."""
        self.spans.append(span)
        self._nanoseconds[span.act] += span.end - span.begin

    def take_seconds(self) -> dict[str, float]:
        """Returns the seconds per act since the last call."""
        taken = {act: ns / 1e9 for act, ns in self._nanoseconds.items()}
        self._nanoseconds.clear()
        return taken

    def write(self, path: Path, stage: int) -> None:
        """Writes the spans in Chrome's trace format (open it in Perfetto), a row per module."""
        events = [
            {
                "name": f"{span.act} {span.step}",
                "cat": span.act,
                "ph": "X",
                "pid": stage,
                "tid": span.module,
                "ts": span.begin / 1000,
                "dur": (span.end - span.begin) / 1000,
                "args": {"step": span.step, "microbatch": span.microbatch},
            }
            for span in self.spans
        ]
        path.parent.mkdir(parents=True, exist_ok=True)
        atomic.write_text(path, json.dumps({"traceEvents": events}))


class _Recording:
    """A context manager that records a span: a class, as a step enters dozens and it is faster."""

    __slots__ = ("_begin", "_status", "_trace", "_what")

    def __init__(
        self, trace: Trace, status: RankStatus, act: str, module: int, step: int, microbatch: int
    ) -> None:
        self._trace = trace
        self._status = status
        self._what = act, module, step, microbatch

    def __enter__(self) -> None:
        act, module, _, microbatch = self._what
        self._status.enter(act, module + 1, microbatch)
        self._begin = time.monotonic_ns()

    def __exit__(self, *_: object) -> None:
        self._trace.keep(Span(*self._what, self._begin, time.monotonic_ns()))
        self._status.enter("between acts")
