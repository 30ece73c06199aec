"""The edges of a stage whose neighbours have several replicas: the messages are dealt among them.

Which replica a message comes from or goes to is a pure function of the run plan, as is the order of
the messages. So the stage receives and sends as if each neighbour were one rank.
"""

from collections.abc import Iterator, Mapping
from typing import Generic, TypeVar

from torch import Tensor

from pipeline_local.pipeline.edge import Message
from pipeline_local.pipeline.transport import Inlet, Outlet

Edge = TypeVar("Edge", bound=Inlet | Outlet)


class _Dealt(Generic[Edge]):
    """An edge to several replicas.

    Args:
        edges: to each of them, by rank.
        turns: the ranks of the messages, in order.
        lagged_turns: the ranks of the lagged messages, in order.
    """

    def __init__(
        self, edges: Mapping[int, Edge], turns: Iterator[int], lagged_turns: Iterator[int]
    ) -> None:
        self._edges: Mapping[int, Edge] = edges
        self._turns = turns
        self._lagged_turns = lagged_turns

    @property
    def waited(self) -> float:
        """The seconds spent waiting for the neighbours."""
        return sum(edge.waited for edge in self._edges.values())


class DealtInlet(_Dealt[Inlet]):
    """A stage's upstream edge to several replicas."""

    def recv(self) -> Message:
        """Waits for the next message and returns it."""
        return self._edges[next(self._turns)].recv()

    def send_lagged(self, *tensors: Tensor) -> None:
        """Starts sending a lagged message, unless the run ends before it would be applied."""
        rank = next(self._lagged_turns, None)
        if rank is not None:
            self._edges[rank].send_lagged(*tensors)

    def finish(self) -> None:
        """Waits until every lagged message is received, once both ends have done the same step."""
        for inlet in self._edges.values():
            inlet.finish()

    def close(self) -> None:
        """Does nothing: these ends have no workers, and after an error they must not wait."""


class DealtOutlet(_Dealt[Outlet]):
    """A stage's downstream edge to several replicas."""

    def send(self, *tensors: Tensor) -> None:
        """Starts sending a message."""
        self._edges[next(self._turns)].send(*tensors)

    def recv_lagged(self) -> Message:
        """Returns the oldest lagged message, which has been on its way for several steps."""
        return self._edges[next(self._lagged_turns)].recv_lagged()

    def finish(self, steps: int) -> None:
        """Waits until every message has been received, once all ends have done so many steps."""
        for outlet in self._edges.values():
            outlet.finish(steps)
