"""The two ends of a boundary between modules, around the queue or channel that carries messages.

All messages between modules pass here and nowhere else, so that they are all rounded alike.
"""

from torch import Tensor

from pipeline_local.learning.wire_format import WireFormat
from pipeline_local.pipeline.edge import Downstream, Upstream


class RoundedUpstream:
    """The upstream edge of a module: widens activations and signals, rounds lagged messages.

    Args:
        edge: the edge that carries the messages.
        wire_format: the dtypes and layout on the wire.
    """

    def __init__(self, edge: Upstream, wire_format: WireFormat) -> None:
        self._edge = edge
        self._wire_format = wire_format

    def recv(self) -> tuple[Tensor, ...]:
        """Returns the next message: (activations, labels[, sum of heads]) or (signal,)."""
        first, *others = self._edge.recv()
        return self._wire_format.widen(first), *others

    def send_lagged(self, *tensors: Tensor) -> None:
        """Sends a lagged message, rounded as its content is."""
        self._edge.send_lagged(*map(self._wire_format.round_lagged, tensors))


class RoundedDownstream:
    """The downstream edge of a module: rounds activations and signals, widens lagged messages.

    Args:
        edge: the edge that carries the messages.
        wire_format: the dtypes and layout on the wire.
    """

    def __init__(self, edge: Downstream, wire_format: WireFormat) -> None:
        self._edge = edge
        self._wire_format = wire_format

    def send(self, *tensors: Tensor) -> None:
        """Sends a message: (activations, labels[, sum of heads]) or (signal,)."""
        first, *others = tensors
        wire_format = self._wire_format
        narrow = wire_format.round_activations if others else wire_format.round_gradient
        self._edge.send(narrow(first), *others)

    def recv_lagged(self) -> tuple[Tensor, ...]:
        """Returns the oldest lagged message, widened; () where no module is downstream."""
        return tuple(map(self._wire_format.widen_lagged, self._edge.recv_lagged()))
