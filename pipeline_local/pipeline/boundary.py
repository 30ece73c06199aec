"""The two ends of a boundary, around whatever carries the messages: a queue or a wire.

All that crosses between modules passes here and nowhere else, so that it is rounded alike.
"""

from torch import Tensor

from pipeline_local.learning.wire_format import WireFormat
from pipeline_local.pipeline.edge import Downstream, Upstream


class RoundedUpstream:
    """What the lower module sees: activations and signals come in wide, its gradients go narrow.

    Args:
        edge: carries the messages.
        wire_format: says how they are rounded.
    """

    def __init__(self, edge: Upstream, wire_format: WireFormat) -> None:
        self._edge = edge
        self._wire_format = wire_format

    def recv(self) -> tuple[Tensor, ...]:
        """The next message: (activations, labels[, votes]) or (signal,)."""
        first, *others = self._edge.recv()
        return self._wire_format.widen(first), *others

    def reply(self, gradient: Tensor) -> None:
        """Send an input gradient back."""
        self._edge.reply(self._wire_format.round_gradient(gradient))


class RoundedDownstream:
    """What the upper module sees: its activations and signals go narrow, feedback comes in wide.

    Args:
        edge: carries the messages.
        wire_format: says how they are rounded.
    """

    def __init__(self, edge: Downstream, wire_format: WireFormat) -> None:
        self._edge = edge
        self._wire_format = wire_format

    def send(self, *tensors: Tensor) -> None:
        """Send a message: (activations, labels[, votes]) or (signal,)."""
        first, *others = tensors
        wire_format = self._wire_format
        narrow = wire_format.round_activations if others else wire_format.round_gradient
        self._edge.send(narrow(first), *others)

    def feedback(self) -> tuple[Tensor, ...]:
        """(The oldest input gradient that was sent back,), or () where nobody answers."""
        return tuple(map(self._wire_format.widen, self._edge.feedback()))
