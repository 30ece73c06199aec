"""The trace of a run: the traces of all stages on one clock, with an arrow for each message.

The file is in Chrome's format: Perfetto opens it. Each stage is a process, and the number of
messages under way to each neighbour is a counter.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from pipeline_local.record.messages import Transfer, between
from pipeline_local.record.stage_trace import Event, StageTrace, microseconds, row, write_events
from pipeline_local.record.trace import Span


@dataclass(frozen=True)
class RunTrace:
    """The traces of the stages of one run.

    Attributes:
        stages: those that were found, in order, on one clock.
        missing: the numbers of all others.
    """

    stages: tuple[StageTrace, ...]
    missing: tuple[int, ...] = ()

    @property
    def messages(self) -> list[Transfer]:
        """The messages between these stages; `sender` and `receiver` are positions in `stages`."""
        return list(between([stage.spans for stage in self.stages]))

    def spans(self) -> Iterator[Span]:
        """Yields all spans of the hosts."""
        for stage in self.stages:
            yield from stage.spans

    @property
    def begin(self) -> int:
        """The begin of the first span, in nanoseconds."""
        return min(span.begin for span in self.spans())

    @property
    def end(self) -> int:
        """The end of the last span."""
        return max(span.end for span in self.spans())

    def events(self) -> Iterator[Event]:
        """Yields all events; time counts from the first span."""
        origin = self.begin
        for stage in self.stages:
            yield from stage.events(origin)
        messages = self.messages
        for number, message in enumerate(messages):
            yield from self._transfer(message, origin)
            yield from self._arrow(message, number, origin)
        yield from self._under_way(messages, origin)

    def _transfer(self, message: Transfer, origin: int) -> Iterator[Event]:
        """Yields, inside of a receive that waits for its sender, the part after the send began.

        Perfetto draws an arrow from the slice that begins first, whatever its events say: a receive
        that waits would be shown as the sender (seen with v52).
        """
        begin, end = message.send.begin + 1, message.recv.end
        if message.recv.begin < begin < end:
            span = message.recv._replace(begin=begin)
            slice_ = self.stages[message.receiver].event(span, row(span), origin)
            yield {**slice_, "name": f"{span.content} under way"}

    def _arrow(self, message: Transfer, number: int, origin: int) -> Iterator[Event]:
        """Yields both ends of an arrow: inside of the spans, or Perfetto would not find those."""
        name = {"name": message.send.content, "cat": "message", "id": number}
        last = max(message.recv.begin, message.recv.end - 1)
        ends = (
            ("s", message.sender, message.send, message.send.begin),
            ("f", message.receiver, message.recv, last),
        )
        for kind, stage, span, time in ends:
            place = {"pid": self.stages[stage].process, "tid": row(span)}
            at = {"ph": kind, "ts": microseconds(time - origin), "bp": "e"}
            yield {**name, **place, **at}

    def _under_way(self, messages: list[Transfer], origin: int) -> Iterator[Event]:
        """Yields, for each edge, how many messages were sent and not yet received."""
        changes = [(m.send.begin, m.sender, m.receiver, 1) for m in messages]
        changes += [(m.recv.end, m.sender, m.receiver, -1) for m in messages]
        count: dict[tuple[int, int], int] = {}
        for time, sender, receiver, change in sorted(changes):
            edge = sender, receiver
            count[edge] = count.get(edge, 0) + change
            yield {
                "name": f"messages to {self.stages[receiver].named}",
                "ph": "C",
                "pid": self.stages[sender].process,
                "ts": microseconds(time - origin),
                "args": {"under way": count[edge]},
            }

    def write(self, path: Path) -> None:
        """Writes the file; it appears complete or not at all, and replaces an earlier one.

        Raises:
            OSError: no space, no permission.
        """
        write_events(path, self.events(), {"stages": [stage.name for stage in self.stages]})


def gather(paths: Iterable[Path]) -> RunTrace | None:
    """Returns the trace of what the stages of a run have left; None if that is nothing.

    What an earlier start of the ranks has left is none of it.

    Args:
        paths: the files of the stages; some may be absent, or not what a stage writes.
    """
    found = [trace for path in paths if (trace := _readable(path))]
    newest = max((trace.start for trace in found), default="")
    own = {trace.rank: trace.aligned() for trace in found if trace.start == newest and trace.spans}
    if not own:
        return None
    count = max(trace.num_ranks for trace in own.values())
    missing = tuple(number for number in range(count) if number not in own)
    return RunTrace(tuple(own[number] for number in sorted(own)), missing)


def _readable(path: Path) -> StageTrace | None:
    try:
        return StageTrace.read(path)
    except (OSError, ValueError, KeyError, TypeError):
        return None
