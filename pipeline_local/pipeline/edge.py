"""The edges of a module: where its messages come from, and where they go.

The stage knows these two protocols and nothing else of its neighbours. Behind them are a queue
(here), a channel between processes (transport.py), the data (source.py), or nothing (here).
"""

from collections import deque
from typing import Protocol

from torch import Tensor

Message = tuple[Tensor, ...]
"""The tensors that are sent together over an edge."""


class Upstream(Protocol):
    """The edge that a module's messages come from, in the order in which they were sent."""

    def recv(self) -> tuple[Tensor, ...]:
        """Returns the next message: (activations, labels), (signal,), or () where there is no
        signal; in evaluations (activations, labels, sum of the upstream heads), without a sum where
        upstream is the data."""
        ...

    def send_lagged(self, *tensors: Tensor) -> None:
        """Sends a lagged message, without waiting for the other end."""
        ...


class Downstream(Protocol):
    """The edge that a module's messages go to, and that lagged messages come from."""

    def send(self, *tensors: Tensor) -> None:
        """Sends a message without waiting for the other end."""
        ...

    def recv_lagged(self) -> tuple[Tensor, ...]:
        """Returns the oldest lagged message; () where no module is downstream."""
        ...


class Nowhere:
    """The downstream edge of the last module, which discards all messages."""

    waited = 0.0
    """The seconds spent waiting: none."""

    def finish(self, steps: int) -> None:
        """Returns at once, as nothing is under way."""

    def send(self, *tensors: Tensor) -> None:
        """Discards the message."""

    def recv_lagged(self) -> tuple[()]:
        """Returns (), as no module sends lagged messages."""
        return ()


class InProcessQueue:
    """Both ends of an edge inside a stage; a module always sends before its neighbour receives."""

    def __init__(self) -> None:
        self._queue: deque[Message] = deque()
        self._lagged: deque[Message] = deque()

    def send(self, *tensors: Tensor) -> None:
        """Adds a message to the queue."""
        self._queue.append(tensors)

    def recv(self) -> Message:
        """Returns the oldest message."""
        return self._queue.popleft()

    def send_lagged(self, *tensors: Tensor) -> None:
        """Adds a lagged message to the queue."""
        self._lagged.append(tensors)

    def recv_lagged(self) -> Message:
        """Returns the oldest lagged message."""
        return self._lagged.popleft()
