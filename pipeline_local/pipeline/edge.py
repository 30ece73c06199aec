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
        evaluations (activations, labels, votes of the heads above), without votes from the data."""
        ...

    def reply(self, gradient: Tensor) -> None:
        """Send an input gradient back, without waiting for the other end."""
        ...


class Downstream(Protocol):
    """Where a module's messages go to, and feedback comes from."""

    def send(self, *tensors: Tensor) -> None:
        """Send a message without waiting for the other end."""
        ...

    def feedback(self) -> tuple[Tensor, ...]:
        """(The oldest input gradient that was sent back,), or () where nobody answers."""
        ...


class Nowhere:
    """Downstream of the last module."""

    waited = 0.0

    def finish(self, replies: int = 0) -> None:
        """Nothing is under way."""

    def send(self, *tensors: Tensor) -> None:
        """Nobody listens."""

    def feedback(self) -> tuple[()]:
        """Nobody answers."""
        return ()


class InProcessQueue:
    """Both ends of an edge inside one stage; upstream always sends before downstream receives."""

    def __init__(self) -> None:
        self._queue: deque[Message] = deque()
        self._feedback: deque[Message] = deque()

    def send(self, *tensors: Tensor) -> None:
        """Hand a message over."""
        self._queue.append(tensors)

    def recv(self) -> Message:
        """The oldest message."""
        return self._queue.popleft()

    def reply(self, gradient: Tensor) -> None:
        """Hand an input gradient back."""
        self._feedback.append((gradient,))

    def feedback(self) -> Message:
        """The oldest input gradient that was handed back."""
        return self._feedback.popleft()
