"""What a module stands between: where its messages come from, and where they go to.

The stage knows these two protocols and nothing else of its neighbours. Behind them are a queue
(here), a channel between processes (transport.py), the data (source.py), or nobody (here).
"""

from collections import deque
from typing import Protocol

from torch import Tensor

Message = tuple[Tensor, ...]


class Upstream(Protocol):
    """Where a module's messages come from, in the order in which they were sent."""

    def recv(self) -> tuple[Tensor, ...]:
        """The next message: (activations, labels), (signal,), or () where there is no signal; in
        evaluations (activations, labels, sum of the heads above), without a sum from the data."""
        ...

    def send_lagged(self, *tensors: Tensor) -> None:
        """Send a lagged message, without waiting for the other end."""
        ...


class Downstream(Protocol):
    """Where a module's messages go to, and lagged messages come from."""

    def send(self, *tensors: Tensor) -> None:
        """Send a message without waiting for the other end."""
        ...

    def recv_lagged(self) -> tuple[Tensor, ...]:
        """The oldest lagged message; () where nobody is downstream."""
        ...


class Nowhere:
    """Downstream of the last module."""

    waited = 0.0

    def finish(self, pending: int = 0) -> None:
        """Nothing is under way."""

    def send(self, *tensors: Tensor) -> None:
        """Nobody listens."""

    def recv_lagged(self) -> tuple[()]:
        """Nobody sends anything upstream."""
        return ()


class InProcessQueue:
    """Both ends of an edge inside one stage; upstream always sends before downstream receives."""

    def __init__(self) -> None:
        self._queue: deque[Message] = deque()
        self._lagged: deque[Message] = deque()

    def send(self, *tensors: Tensor) -> None:
        """Hand a message over."""
        self._queue.append(tensors)

    def recv(self) -> Message:
        """The oldest message."""
        return self._queue.popleft()

    def send_lagged(self, *tensors: Tensor) -> None:
        """Hand a lagged message over."""
        self._lagged.append(tensors)

    def recv_lagged(self) -> Message:
        """The oldest lagged message."""
        return self._lagged.popleft()
