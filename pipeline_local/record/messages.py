"""The messages between stages, as the spans of both ends show them."""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

from pipeline_local.learning.step import LAG
from pipeline_local.record.trace import Span

ACTIVATIONS, SIGNAL, LAGGED, TEST_BATCH = "activations", "signal", "lagged message", "test batch"
"""What messages hold, as the stage's spans say it."""

Key = tuple[str, int, int, int]
"""What both ends of a message have in common: its content, the module upstream of the boundary that
it crosses, the step in which it was sent, and its microbatch."""


class Transfer(NamedTuple):
    """A message from one stage to another.

    Attributes:
        sender: its stage.
        send: what the sender spent on it.
        receiver: its stage.
        recv: what the receiver spent on it, the wait for it included.
    """

    sender: int
    send: Span
    receiver: int
    recv: Span


def key(span: Span) -> Key:
    """Returns the key of the message that a span sends or receives."""
    goes_up = span.content == LAGGED
    is_upstream_end = (span.act == "send") != goes_up
    delay = LAG if goes_up and span.act == "recv" else 0
    module = span.module if is_upstream_end else span.module - 1
    return span.content, module, span.step - delay, span.microbatch


def between(stages: Sequence[Sequence[Span]]) -> Iterator[Transfer]:
    """Yields the messages between stages of which both ends were recorded.

    Args:
        stages: the spans of each stage.
    """
    sent = {
        key(span): (number, span)
        for number, spans in enumerate(stages)
        for span in spans
        if span.act == "send"
    }
    for receiver, spans in enumerate(stages):
        for recv in spans:
            if recv.act == "recv" and (found := sent.get(key(recv))) and found[0] != receiver:
                yield Transfer(*found, receiver, recv)
