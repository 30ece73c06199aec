"""The edges of a stage whose neighbours have several replicas: the messages are dealt among them.

Which replica a message comes from or goes to is a pure function of the run plan, as is the order of
the messages. So the stage receives and sends as if each neighbour were one rank.
"""

from collections.abc import Iterator, Mapping

from torch import Tensor

from pipeline_local.pipeline.edge import Message
from pipeline_local.pipeline.transport import Inlet, Outlet


class DealtInlet:
    """A stage's upstream edge to several replicas.

    Args:
        inlets: the edge to each of them, by rank.
        turns: the ranks that the messages come from, in order.
        lagged_turns: the ranks that the lagged messages go to, in order.
    """

    def __init__(
        self, inlets: Mapping[int, Inlet], turns: Iterator[int], lagged_turns: Iterator[int]
    ) -> None:
        self._inlets = inlets
        self._turns = turns
        self._lagged_turns = lagged_turns

    @property
    def waited(self) -> float:
        """The seconds spent waiting for the neighbours."""
        return sum(inlet.waited for inlet in self._inlets.values())

    def recv(self) -> Message:
        """Waits for the next message and returns it."""
        return self._inlets[next(self._turns)].recv()

    def send_lagged(self, *tensors: Tensor) -> None:
        """Starts sending a lagged message, unless the run ends before it would be applied."""
        rank = next(self._lagged_turns, None)
        if rank is not None:
            self._inlets[rank].send_lagged(*tensors)

    def finish(self) -> None:
        """Waits until every lagged message is received, once both ends have done the same step."""
        for inlet in self._inlets.values():
            inlet.finish()

    def close(self) -> None:
        """Does nothing: these ends have no workers, and after an error they must not wait."""


class DealtOutlet:
    """A stage's downstream edge to several replicas.

    Args:
        outlets: the edge to each of them, by rank.
        turns: the ranks that the messages go to, in order.
        lagged_turns: the ranks that the lagged messages come from, in order.
    """

    def __init__(
        self, outlets: Mapping[int, Outlet], turns: Iterator[int], lagged_turns: Iterator[int]
    ) -> None:
        self._outlets = outlets
        self._turns = turns
        self._lagged_turns = lagged_turns

    @property
    def waited(self) -> float:
        """The seconds spent waiting for the neighbours."""
        return sum(outlet.waited for outlet in self._outlets.values())

    def send(self, *tensors: Tensor) -> None:
        """Starts sending a message."""
        self._outlets[next(self._turns)].send(*tensors)

    def recv_lagged(self) -> Message:
        """Returns the oldest lagged message, which has been on its way for several steps."""
        return self._outlets[next(self._lagged_turns)].recv_lagged()

    def finish(self, steps: int) -> None:
        """Waits until every message has been received, once all ends have done so many steps."""
        for outlet in self._outlets.values():
            outlet.finish(steps)
