"""Channels between processes: the only point-to-point communication there is.

A channel is one directed edge. Its messages, their order, their shapes and dtypes are a pure
function of the configuration (`Contract.traffic`), known to both ends: so the receiver posts its
next receive early, and a tensor that breaks the contract is refused before it is sent.

    Sender      the sending end of a channel
    Receiver    its receiving end
    Inlet       a stage's upstream edge: a receiver, and a sender of lagged messages
    Outlet      a stage's downstream edge: a sender, and a receiver of lagged messages
    p2p.py      the transport of one tensor: gloo, staged through pinned memory, nccl
"""

from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from pipeline_local.blueprint.contract import Spec
from pipeline_local.pipeline.edge import Message
from pipeline_local.ranks.p2p import P2P, Pending
from pipeline_local.record.stopwatch import Stopwatch

DEPTH = 2
"""The messages that a stage may have under way: how far it runs ahead of the next stage."""


class Sender:
    """The sending end of a channel between processes.

    Args:
        p2p: the connection, which carries single tensors.
        traffic: the specs of the messages that will be sent, in order.
        device: the device of the tensors.
        depth: the most messages that may be unfinished; the next send waits for the oldest. That
            is the back-pressure: a fast stage runs at most this far ahead of a slow one.
    """

    def __init__(
        self,
        p2p: P2P,
        traffic: Iterator[tuple[Spec, ...]],
        device: torch.device,
        depth: int = DEPTH,
    ) -> None:
        self._p2p = p2p
        self._device = device
        self._traffic = traffic
        self._next = next(traffic, None)
        self._depth = depth
        self._unfinished: deque[list[Pending]] = deque()
        self._back_pressure = Stopwatch(device)

    @property
    def waited(self) -> float:
        """The seconds spent in back-pressure."""
        return self._back_pressure.seconds

    @property
    def done(self) -> bool:
        """Whether the other end expects no more messages."""
        return self._next is None

    def send(self, *tensors: Tensor) -> None:
        """Starts sending a message; returns at once unless `depth` messages are unfinished.

        The tensors must not be written afterwards.

        Raises:
            ValueError: the message is not the one the contract expects.
        """
        assert self._next is not None, "the contract has no further message"
        for spec, tensor in zip(self._next, tensors, strict=True):
            spec.check(tensor)
        self._next = next(self._traffic, None)
        while len(self._unfinished) >= self._depth:
            self._finish_oldest()
        self._unfinished.append([self._p2p.isend(tensor) for tensor in tensors])

    def finish(self) -> None:
        """Waits until the other end has received everything; call it when the run ends.

        If the run ends before its traffic does, the other end has already posted its next receive:
        it gets zeros, so that no transfer is left unfinished.
        """
        specs, self._next = self._next or (), None
        zeros = [torch.zeros(spec.shape, dtype=spec.dtype, device=self._device) for spec in specs]
        self._unfinished.append([self._p2p.isend(tensor) for tensor in zeros])
        while self._unfinished:
            self._finish_oldest()

    def _finish_oldest(self) -> None:
        with self._back_pressure.running():
            for pending in self._unfinished.popleft():
                pending.wait()


class Receiver:
    """The receiving end of a channel between processes; one receive is always posted ahead.

    Never more than one: a posted NCCL receive occupies the communicator (pytorch#165664).

    Args:
        p2p: the connection, which carries single tensors.
        traffic: the specs of the messages that will come, in order.
        device: the device of the received tensors.
    """

    def __init__(self, p2p: P2P, traffic: Iterator[tuple[Spec, ...]], device: torch.device) -> None:
        self._p2p = p2p
        self._traffic = traffic
        self._posted = self._post()
        self._arrival = Stopwatch(device)

    @property
    def waited(self) -> float:
        """The seconds spent waiting for messages."""
        return self._arrival.seconds

    def recv(self) -> Message:
        """Waits for the next message of the contract and returns it."""
        with self._arrival.running():
            message = tuple(pending.wait() for pending in self._posted)
        self._posted = self._post()
        return message

    def drain(self, count: int) -> None:
        """Receives the messages that are on their way, if the run ends before its traffic does.

        Args:
            count: the most messages to receive; the traffic may end before that.
        """
        for _ in range(count):
            if self._posted:
                self.recv()

    def _post(self) -> list[Pending]:
        return [self._p2p.irecv(spec.shape, spec.dtype) for spec in next(self._traffic, ())]


@dataclass(frozen=True)
class Inlet:
    """A stage's upstream edge between processes.

    Attributes:
        messages: receives activations and signals.
        lagged: sends lagged messages; None where there are none.
    """

    messages: Receiver
    lagged: Sender | None = None

    @property
    def waited(self) -> float:
        """The seconds spent waiting for the neighbour."""
        return self.messages.waited + (self.lagged.waited if self.lagged else 0.0)

    def recv(self) -> Message:
        """Waits for the next message and returns it."""
        return self.messages.recv()

    def send_lagged(self, *tensors: Tensor) -> None:
        """Starts sending a lagged message, unless the run ends before it would be applied."""
        assert self.lagged is not None, "the run plan has lagged messages, and so has the edge"
        if not self.lagged.done:
            self.lagged.send(*tensors)

    def finish(self) -> None:
        """Waits until every lagged message is received, once both ends have done the same step."""
        if self.lagged is not None:
            self.lagged.finish()

    def close(self) -> None:
        """Does nothing: this end has no workers, and after an error it must not wait."""


@dataclass(frozen=True)
class Outlet:
    """A stage's downstream edge between processes.

    Attributes:
        messages: sends activations and signals.
        lagged: receives lagged messages; None where there are none.
        under_way: returns the number of lagged messages that are on their way after so many steps.
    """

    messages: Sender
    lagged: Receiver | None = None
    under_way: Callable[[int], int] = lambda steps: 0

    @property
    def waited(self) -> float:
        """The seconds spent waiting for the neighbour."""
        return self.messages.waited + (self.lagged.waited if self.lagged else 0.0)

    def send(self, *tensors: Tensor) -> None:
        """Starts sending a message."""
        self.messages.send(*tensors)

    def recv_lagged(self) -> Message:
        """Returns the oldest lagged message, which has been on its way for several steps."""
        assert self.lagged is not None, "the run plan has lagged messages, and so has the edge"
        return self.lagged.recv()

    def finish(self, steps: int) -> None:
        """Waits until every message has been received, once both ends have done so many steps.

        The lagged messages that are on their way will not be applied.
        """
        if self.lagged is not None:
            self.lagged.drain(self.under_way(steps))
        self.messages.finish()
