"""Fake edges of a stage in a dry run: they hold what real edges would have under way."""

from collections import deque
from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from pipeline_local.blueprint.contract import Contract, Spec
from pipeline_local.learning.step import Step
from pipeline_local.pipeline.transport import DEPTH


class FakeUpstream:
    """A fake upstream edge: gives fake messages as the contract has them, one received ahead.

    Args:
        first: the specs of a message of activations.
        signal: the specs of a signal; empty if the upstream is the data.
        step: the step that the messages belong to.
    """

    def __init__(self, first: tuple[Spec, ...], signal: tuple[Spec, ...], step: Step) -> None:
        messages = [first, *([signal] if step.compare else [])]
        self._order = deque(messages * step.microbatches)
        self._ahead = fake_message(self._order[0])

    @property
    def num_bytes(self) -> int:
        """The bytes of the largest message, which may wait here."""
        return max(map(num_bytes, self._order))

    def recv(self) -> tuple[Tensor, ...]:
        """Returns the next message."""
        message = self._ahead
        self._order.rotate(-1)
        self._ahead = fake_message(self._order[0])
        return message

    def send_lagged(self, *tensors: Tensor) -> None:
        """Holds nothing, as the module's queue of pending messages holds the message anyway."""


class FakeDownstream:
    """A fake downstream edge: holds the newest messages as unfinished sends, and receives at once.

    Args:
        contract: the contract of the edge; None if no stage is downstream.
        lagged: the specs of the lagged messages that will come, in order; none without a contract.

    Attributes:
        num_bytes: the bytes that the edge holds at most.
    """

    def __init__(self, contract: Contract | None, lagged: Iterable[tuple[Spec, ...]] = ()) -> None:
        self._lagged = deque(lagged)
        self.num_bytes = max(map(num_bytes, self._lagged), default=0)
        self._ahead = self._next()
        self._held: deque[tuple[Tensor, ...]] = deque(maxlen=DEPTH if contract else 0)
        if contract:  # a message of activations, and its signal or another one
            self.num_bytes += 2 * num_bytes([contract.activations, contract.labels])

    def send(self, *tensors: Tensor) -> None:
        """Holds the message."""
        self._held.append(tensors)

    def recv_lagged(self) -> tuple[Tensor, ...]:
        """Returns the next lagged message; () where no stage is downstream."""
        message, self._ahead = self._ahead, self._next()
        return message

    def _next(self) -> tuple[Tensor, ...]:
        return fake_message(self._lagged.popleft()) if self._lagged else ()


def fake_message(specs: Sequence[Spec]) -> tuple[Tensor, ...]:
    """Returns a message of uninitialised tensors, which are fake in a dry run."""
    return tuple(torch.empty(spec.shape, dtype=spec.dtype) for spec in specs)


def num_bytes(specs: Sequence[Spec]) -> int:
    """Returns the bytes of a message."""
    return sum(spec.dtype.itemsize * torch.Size(spec.shape).numel() for spec in specs)
