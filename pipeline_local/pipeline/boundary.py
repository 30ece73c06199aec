"""The two ends of a boundary, around whatever carries the messages: a queue or a wire.

All that crosses between modules passes here and nowhere else, so that it is rounded alike.
"""

from torch import Tensor

from pipeline_local.learning.wire_format import WireFormat
from pipeline_local.pipeline.edge import Downstream, Upstream


class RoundedUpstream:
    """What the lower module sees: activations and signals come in wide, lagged messages go narrow.

    Args:
        edge: carries the messages.
        wire_format: says how they are rounded.
    """

    def __init__(self, edge: Upstream, wire_format: WireFormat) -> None:
        self._edge = edge
        self._wire_format = wire_format

    def recv(self) -> tuple[Tensor, ...]:
        """The next message: (activations, labels[, sum of heads]) or (signal,)."""
        first, *others = self._edge.recv()
        return self._wire_format.widen(first), *others

    def send_lagged(self, *tensors: Tensor) -> None:
        """Send a lagged message, rounded for the way."""
        self._edge.send_lagged(*map(self._wire_format.round_lagged, tensors))


class RoundedDownstream:
    """What the upper module sees: activations and signals go narrow, lagged messages come in wide.

    Args:
        edge: carries the messages.
        wire_format: says how they are rounded.
    """

    def __init__(self, edge: Downstream, wire_format: WireFormat) -> None:
        self._edge = edge
        self._wire_format = wire_format

    def send(self, *tensors: Tensor) -> None:
        """Send a message: (activations, labels[, sum of heads]) or (signal,)."""
        first, *others = tensors
        wire_format = self._wire_format
        narrow = wire_format.round_activations if others else wire_format.round_gradient
        self._edge.send(narrow(first), *others)

    def recv_lagged(self) -> tuple[Tensor, ...]:
        """The oldest lagged message, widened; () where nobody is downstream."""
        return tuple(map(self._wire_format.widen_lagged, self._edge.recv_lagged()))
