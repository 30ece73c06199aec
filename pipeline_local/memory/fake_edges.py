"""Fake edges of a stage whose step is a dry run: they hold what real ones would have under way."""

from collections import deque
from collections.abc import Sequence

import torch
from torch import Tensor

from pipeline_local.blueprint.contract import Contract, Spec
from pipeline_local.learning.step import Step
from pipeline_local.pipeline.transport import DEPTH


class FakeUpstream:
    """Sends fake messages as the contract has them, one of them ahead."""

    def __init__(self, first: tuple[Spec, ...], signal: tuple[Spec, ...], step: Step) -> None:
        messages = [first, *([signal] if step.compare else [])]
        self._order = deque(messages * step.microbatches)
        self._ahead = fake_message(self._order[0])

    @property
    def num_bytes(self) -> int:
        """The largest message: it may wait here."""
        return max(map(num_bytes, self._order))

    def recv(self) -> tuple[Tensor, ...]:
        """The next message."""
        message = self._ahead
        self._order.rotate(-1)
        self._ahead = fake_message(self._order[0])
        return message

    def send_lagged(self, *tensors: Tensor) -> None:
        """The module's queue of pending messages holds it, too."""


class FakeDownstream:
    """Has not yet taken over the newest messages, and has lagged ones at once."""

    def __init__(self, contract: Contract | None, lagged: bool) -> None:
        self._lagged = contract.lagged if contract and lagged else ()
        self._ahead = fake_message(self._lagged)
        self._held: deque[tuple[Tensor, ...]] = deque(maxlen=DEPTH if contract else 0)
        self.num_bytes = num_bytes(self._lagged)
        if contract:  # a message of activations, and its signal or another one
            self.num_bytes += 2 * num_bytes([contract.activations, contract.labels])

    def send(self, *tensors: Tensor) -> None:
        """Hold on to it."""
        self._held.append(tensors)

    def recv_lagged(self) -> tuple[Tensor, ...]:
        """A lagged message, where somebody is downstream."""
        message, self._ahead = self._ahead, fake_message(self._lagged)
        return message


def fake_message(specs: Sequence[Spec]) -> tuple[Tensor, ...]:
    """A message in unfilled memory."""
    return tuple(torch.empty(spec.shape, dtype=spec.dtype) for spec in specs)


def num_bytes(specs: Sequence[Spec]) -> int:
    """Of a message."""
    return sum(spec.dtype.itemsize * torch.Size(spec.shape).numel() for spec in specs)
