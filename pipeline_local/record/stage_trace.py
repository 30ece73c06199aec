"""What a stage leaves of its trace: a file in Chrome's format, which Perfetto opens.

A row per module holds its acts; what is received and sent has rows of its own, as have checkpoints
and the device. Steps and modules count from 1, as in the metrics.
"""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from pipeline_local import atomic
from pipeline_local.record.clocks import Sample, shifted
from pipeline_local.record.messages import SIGNAL
from pipeline_local.record.trace import NO_MODULE, Span

Event = dict[str, Any]
"""One event of Chrome's format."""

ROWS = ("data", "receives", "modules", "sends", "between steps", "checkpoint writer", "device")
"""The rows of a stage, in order; modules have one each."""
PER_ROW = 1000
"""Numbers of rows between two of `ROWS`: room for modules."""


@dataclass(frozen=True)
class StageTrace:
    """The spans of one rank: of a stage, or of one of its replicas.

    Attributes:
        rank: its number.
        num_ranks: the number of all ranks.
        host: its name.
        start: when the ranks started, as ISO 8601 in UTC, the same for all of them.
        spans: on the host.
        device: the acts again, as the device did them; none without a GPU.
        clock: how the clock of the spans differs from that of the first rank (clocks.py).
        place: of the rank, such as "stage 1" or "stage 1, replica 0"; empty: its number is that of
            its stage.
    """

    rank: int
    num_ranks: int
    host: str
    start: str
    spans: Sequence[Span]
    device: Sequence[Span] = ()
    clock: Sequence[Sample] = ()
    place: str = ""

    @property
    def named(self) -> str:
        """What a message calls it."""
        return self.place or f"stage {self.rank}"

    @property
    def name(self) -> str:
        """Its name in the timeline."""
        return f"{self.named} (rank {self.rank}, {self.host})"

    @property
    def process(self) -> int:
        """The number of the rank in the timeline; for Perfetto process 0 is none of the user's."""
        return self.rank + 1

    def aligned(self) -> "StageTrace":
        """Returns the same spans on the clock of the first rank."""

        def on_its_clock(span: Span) -> Span:
            return span._replace(
                begin=shifted(span.begin, self.clock), end=shifted(span.end, self.clock)
            )

        spans, device = ([*map(on_its_clock, part)] for part in (self.spans, self.device))
        return replace(self, spans=spans, device=device, clock=())

    def events(self, origin: int = 0) -> Iterator[Event]:
        """Yields the names of the rows, and an event per span.

        Args:
            origin: the time in nanoseconds that the events count from.
        """
        rows = {row(span): row_name(span) for span in self.spans}
        if self.device:
            rows[PER_ROW * ROWS.index("device")] = "device"
        yield self._named("process", 0, self.name)
        for number, name in sorted(rows.items()):
            yield self._named("thread", number, name)
        for span in self.spans:
            yield self.event(span, row(span), origin)
        for span in self.device:
            yield self.event(span, PER_ROW * ROWS.index("device"), origin)

    def _named(self, what: str, number: int, name: str) -> Event:
        place = {"ph": "M", "pid": self.process, "tid": number}
        return {"name": f"{what}_name", **place, "args": {"name": name}}

    def event(self, span: Span, row: int, origin: int) -> Event:
        """Returns the slice of a span.

        Args:
            span: of this stage.
            row: the number of its row.
            origin: the time in nanoseconds that the slice's time counts from.
        """
        facts = {"step": span.step + 1, "microbatch": span.microbatch, "content": span.content}
        return {
            "name": event_name(span),
            "cat": span.act,
            "ph": "X",
            "pid": self.process,
            "tid": row,
            "ts": microseconds(span.begin - origin),
            "dur": microseconds(span.end - span.begin),
            "args": {"module": span.module + 1, **facts},
        }

    def write(self, path: Path) -> None:
        """Writes the file; it appears complete or not at all.

        Raises:
            OSError: no space, no permission.
        """
        about = {"stage": self.rank, "stages": self.num_ranks, "host": self.host}
        about |= {"start": self.start, "clock": self.clock, "place": self.place}
        path.parent.mkdir(parents=True, exist_ok=True)
        write_events(path, self.events(), about)

    @classmethod
    def read(cls, path: Path) -> "StageTrace":
        """Reads the file back.

        Raises:
            OSError: it cannot be read.
            ValueError, KeyError, TypeError: it holds something else.
        """
        whole = json.loads(path.read_bytes())
        found = [event for event in whole["traceEvents"] if event["ph"] == "X"]
        device = PER_ROW * ROWS.index("device")
        about = whole["otherData"]
        return cls(
            rank=about["stage"],
            num_ranks=about["stages"],
            host=about["host"],
            start=about["start"],
            spans=[_span(event) for event in found if event["tid"] != device],
            device=[_span(event) for event in found if event["tid"] == device],
            clock=[(time, add) for time, add in about["clock"]],
            place=about.get("place", ""),
        )


def row(span: Span) -> int:
    """Returns the number of the row that a span of the host belongs to."""
    name = _kind(span)
    module = span.module + 1 if name == "modules" else 0
    return PER_ROW * ROWS.index(name) + module


def row_name(span: Span) -> str:
    """Returns the name of that row."""
    name = _kind(span)
    return f"module {span.module + 1}" if name == "modules" else name


def _kind(span: Span) -> str:
    match span.act:
        case "recv":
            return "receives" if span.module else "data"
        case "send":
            return "sends"
        case "write":
            return "checkpoint writer"
        case _:
            return "modules" if span.module != NO_MODULE else "between steps"


def event_name(span: Span) -> str:
    """Returns what a span is called, without its step: spans of one name have one colour."""
    match span.act:
        case "recv" if span.module == 0 and span.content != SIGNAL:
            return "read data"
        case "recv" | "send":
            return f"{'send' if span.act == 'send' else 'receive'} {span.content}".rstrip()
        case "save":
            return "copy for a checkpoint"
        case "write":
            return f"write module {span.module + 1}"
        case "log":
            return "write metrics"
        case _:
            return span.act


def microseconds(nanoseconds: int) -> float:
    """Returns a time in the unit of Chrome's format."""
    return nanoseconds / 1000


def write_events(path: Path, events: Iterator[Event], about: dict[str, Any]) -> None:
    """Writes a file in Chrome's format; it appears complete or not at all.

    Raises:
        OSError: no space, no permission.
    """
    whole = {"traceEvents": [*events], "displayTimeUnit": "ms", "otherData": about}
    atomic.write_text(path, json.dumps(whole))


def _span(event: Event) -> Span:
    facts, begin = event["args"], round(1000 * event["ts"])
    return Span(
        act=event["cat"],
        module=facts["module"] - 1,
        step=facts["step"] - 1,
        microbatch=facts["microbatch"],
        content=facts["content"],
        begin=begin,
        end=begin + round(1000 * event["dur"]),
    )
