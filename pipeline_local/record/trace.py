"""A trace of a stage: spans on the host's monotonic clock, comparable between ranks of a host.

On a GPU a span ends when its work is queued, not when it is done, except where the host waits.
"""

import json
import time
from collections import defaultdict, deque
from collections.abc import Iterator
from contextlib import contextmanager
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

    @contextmanager
    def span(self, act: str, module: int, step: int, microbatch: int = 0) -> Iterator[None]:
        """Records the enclosed work as one span."""
        self._status.enter(act, module + 1, microbatch)
        begin = time.monotonic_ns()
        try:
            yield
        finally:
            end = time.monotonic_ns()
            self.spans.append(Span(act, module, step, microbatch, begin, end))
            self._nanoseconds[act] += end - begin
            self._status.enter("between acts")

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
