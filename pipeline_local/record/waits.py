"""Where the time of a run went, in words: the acts of each stage, and the largest waits.

A stage waits for a message that its neighbour has not sent yet, or for room to send one. The cause
is what the neighbour did for most of that time; where it waited itself, the cause is further on.
"""

from bisect import bisect_left
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from pipeline_local.errors import counted
from pipeline_local.record.messages import Transfer, between, key
from pipeline_local.record.run_trace import RunTrace
from pipeline_local.record.trace import NO_MODULE, Span

SHOWN = 5
"""Waits that are shown."""

_SHARES = 4
"""Acts that are shown of each stage."""

_BESIDE = {"save": "saving a checkpoint", "log": "writing metrics"}


@dataclass(frozen=True)
class Wait:
    """A wait of one stage for another.

    Attributes:
        text: who waited for what, without numbers.
        cause: what the other stage did meanwhile.
        step: the number of the step, from 1.
        nanoseconds: how long it lasted.
    """

    text: tuple[str, str]
    cause: str
    step: int
    nanoseconds: int


class Waits:
    """The waits of all stages for each other.

    Args:
        trace: of the run.
    """

    def __init__(self, trace: RunTrace) -> None:
        stages = trace.stages
        self._names = [stage.named for stage in stages]
        # on a device, what it did when; the host is ahead of it
        self._acts = [_in_order(stage.device or stage.spans) for stage in stages]
        self._beside = [[s for s in stage.spans if s.act in _BESIDE] for stage in stages]
        self._messages = list(between(self._acts))
        self._by_recv = {(m.receiver, key(m.recv)): m for m in self._messages}

    def __iter__(self) -> Iterator[Wait]:
        for message in self._messages:
            yield self._for_message(message)
            if blocked := self._for_room(message):
                yield blocked

    def _for_message(self, message: Transfer) -> Wait:
        sender, recv = self._names[message.sender], message.recv
        text = (
            f"{self._names[message.receiver]} waited",
            f"for {sender}'s {recv.content}",
        )
        return Wait(text, self._cause(message), recv.step + 1, recv.end - recv.begin)

    def _for_room(self, message: Transfer) -> Wait | None:
        """A send that waits until the other stage has taken an earlier message."""
        send, other = message.send, message.receiver
        doing = self._doing(other, send.begin, send.end)
        if doing is None or doing.act == "recv":  # it waits for this very message
            return None
        text = f"{self._names[message.sender]} took", f"to send {send.content}"
        cause = f"{self._names[other]} {_was(doing)}"
        return Wait(text, cause, send.step + 1, send.end - send.begin)

    def _cause(self, message: Transfer) -> str:
        """What the sender did until it sent the message, or that the message was on its way."""
        recv, sender = message.recv, message.sender
        sent = min(message.send.begin, recv.end)
        if sent - recv.begin < (recv.end - recv.begin) / 2:
            return "the message was on its way"
        doing = self._doing(sender, recv.begin, sent)
        earlier = self._by_recv.get((sender, key(doing))) if doing else None
        if doing is None or doing.act != "recv" or earlier is None:
            return f"{self._names[sender]} {_was(doing)}"
        return f"{self._names[sender]} waited, too: {self._cause(earlier)}"

    def _doing(self, stage: int, begin: int, end: int) -> Span | None:
        """The span of a stage that fills most of a time; None if most of it is between spans."""
        parts = [
            (min(span.end, end) - max(span.begin, begin), span)
            for spans in (self._acts[stage], self._beside[stage])
            for span in _overlapping(spans, begin, end)
        ]
        by_kind: dict[tuple[str, int, str], list[tuple[int, Span]]] = defaultdict(list)
        for part in parts:
            by_kind[part[1].act, part[1].module, part[1].content].append(part)
        most = max(by_kind.values(), key=_total, default=[])
        idle = end - begin - _total(parts)
        return max(most)[1] if most and _total(most) >= idle else None


def _total(parts: Sequence[tuple[int, Span]]) -> int:
    return sum(part for part, _ in parts)


def _in_order(spans: Sequence[Span]) -> list[Span]:
    """The acts alone: they follow each other, as one thread does them."""
    return sorted((s for s in spans if s.module != NO_MODULE and s.act != "write"), key=_begin)


def _begin(span: Span) -> int:
    return span.begin


def _overlapping(spans: Sequence[Span], begin: int, end: int) -> Iterator[Span]:
    """Those of spans that follow each other which overlap a time."""
    for position in range(bisect_left(spans, end, key=_begin) - 1, -1, -1):
        if spans[position].end <= begin:
            return
        yield spans[position]


def _was(doing: Span | None) -> str:
    """What a stage did, after its name."""
    if doing is None:
        return "was between its acts"
    if doing.act in _BESIDE:
        return f"was {_BESIDE[doing.act]}"
    if doing.act == "recv":
        return f"was receiving {doing.content}" if doing.module else "was reading data"
    if doing.act == "send":
        return f"was sending {doing.content}"
    return f"was in '{doing.act}' of module {doing.module + 1}"


def report(trace: RunTrace, shown: int = SHOWN) -> list[str]:
    """Returns the lines: what each stage did, and the largest waits with their causes.

    Args:
        trace: of the run.
        shown: the number of waits; those of one kind and cause are one.
    """
    steps = [span.step + 1 for span in trace.spans()]
    seconds = (trace.end - trace.begin) / 1e9
    which = (
        f"step {min(steps)}" if min(steps) == max(steps) else f"steps {min(steps)} to {max(steps)}"
    )
    lines = [f"{which}, {seconds:.3f} s:"]
    lines += [f"  {s.named}: {_shares(s.device or s.spans)}" for s in trace.stages]
    lines += [f"  rank {n} has left no trace" for n in trace.missing]
    groups: dict[tuple[tuple[str, str], str], list[Wait]] = defaultdict(list)
    for wait in Waits(trace):
        groups[wait.text, wait.cause].append(wait)
    largest = sorted(groups.values(), key=lambda waits: -sum(w.nanoseconds for w in waits))[:shown]
    return lines + ["largest waits:"] * bool(largest) + [f"  {_line(waits)}" for waits in largest]


def _line(waits: Sequence[Wait]) -> str:
    """One line for all waits of one kind and cause."""
    longest = max(waits, key=lambda wait: wait.nanoseconds)
    (who, what), total = longest.text, sum(wait.nanoseconds for wait in waits)
    others = len(waits) - 1
    more = f" ({_ms(total)} with {counted(others, 'other such wait')})" if others else ""
    return f"{who} {_ms(longest.nanoseconds)} in step {longest.step} {what}{more}: {longest.cause}"


def _ms(nanoseconds: int) -> str:
    return f"{nanoseconds / 1e6:.1f} ms"


def _shares(spans: Sequence[Span]) -> str:
    """What a stage did for which part of its time."""
    acts = _in_order(spans)
    whole = max(1, acts[-1].end - acts[0].begin) if acts else 1
    spent: Counter[str] = Counter()
    for span in acts:
        spent[_activity(span)] += span.end - span.begin
    return ", ".join(f"{100 * ns / whole:.0f} % {what}" for what, ns in spent.most_common(_SHARES))


def _activity(span: Span) -> str:
    match span.act:
        case "recv":
            return "waiting for messages" if span.module else "reading data"
        case "send":
            return "sending"
        case _:
            return span.act
