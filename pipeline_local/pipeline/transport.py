"""Channels between processes: the only point-to-point communication there is.

A channel is one directed edge. Which messages cross it, in which order, with which shapes and
dtypes, is a pure function of the configuration (`Contract.traffic`), known to both ends: so the
receiver posts its next receive early, and a tensor that breaks the contract is refused before it
is sent.

    Sender      the upstream end of an edge between two processes
    Receiver    its downstream end
    Inlet       what a stage has upstream: a receiver, and a sender of lagged messages
    Outlet      what a stage has downstream: a sender, and a receiver of lagged messages
    p2p.py      how one tensor gets across: gloo, staged through pinned memory, nccl
"""

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from pipeline_local.blueprint.contract import Spec
from pipeline_local.pipeline.edge import Message
from pipeline_local.ranks.p2p import P2P, Pending
from pipeline_local.record.stopwatch import Stopwatch

DEPTH = 2
"""Messages that a stage may have under way: how far it runs ahead of the next one."""


class Sender:
    """The upstream end of an edge between processes.

    Args:
        p2p: carries single tensors.
        traffic: what will be sent, in order.
        device: where the tensors are.
        depth: most messages that may be unfinished; the next send waits for the oldest. That is
            the back-pressure: a fast stage runs at most this far ahead of a slow one.
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
        """Seconds spent in back-pressure."""
        return self._back_pressure.seconds

    @property
    def done(self) -> bool:
        """Nothing more is expected at the other end."""
        return self._next is None

    def send(self, *tensors: Tensor) -> None:
        """Start sending a message; returns at once unless `depth` messages are unfinished.

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
        """Wait until everything has been taken over by the other end, which is to do no more.

        If the run ends before its traffic does, the other end has already posted its next receive:
        it gets zeros, so that no transfer is left hanging.
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
    """The downstream end of an edge between processes; one receive is always posted ahead.

    Never more than one: a posted NCCL receive occupies the communicator (pytorch#165664).

    Args:
        p2p: carries single tensors.
        traffic: what will come, in order.
        device: where the tensors will be.
    """

    def __init__(self, p2p: P2P, traffic: Iterator[tuple[Spec, ...]], device: torch.device) -> None:
        self._p2p = p2p
        self._traffic = traffic
        self._posted = self._post()
        self._arrival = Stopwatch(device)

    @property
    def waited(self) -> float:
        """Seconds spent waiting for messages."""
        return self._arrival.seconds

    def recv(self) -> Message:
        """The next message of the contract; waits for it."""
        with self._arrival.running():
            message = tuple(pending.wait() for pending in self._posted)
        self._posted = self._post()
        return message

    def drain(self, count: int) -> None:
        """Take the messages that are still on their way, if the run ends before its traffic does.

        Args:
            count: as many at most; the end of the traffic counts, too.
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
        messages: activations and signals come in.
        lagged: lagged messages go out; None where there are none.
    """

    messages: Receiver
    lagged: Sender | None = None

    @property
    def waited(self) -> float:
        """Seconds spent waiting for the neighbour."""
        return self.messages.waited + (self.lagged.waited if self.lagged else 0.0)

    def recv(self) -> Message:
        """The next message; waits for it."""
        return self.messages.recv()

    def send_lagged(self, *tensors: Tensor) -> None:
        """Start sending a lagged message, unless the run ends before it would be applied."""
        assert self.lagged is not None, "the run plan has lagged messages, and so has the edge"
        if not self.lagged.done:
            self.lagged.send(*tensors)

    def finish(self) -> None:
        """Wait until the neighbour has taken every lagged message, once both have done one step."""
        if self.lagged is not None:
            self.lagged.finish()

    def close(self) -> None:
        """Nothing runs at this end. After an error nobody may be waited for."""


@dataclass(frozen=True)
class Outlet:
    """A stage's downstream edge between processes.

    Attributes:
        messages: activations and signals go out.
        lagged: lagged messages come in; None where there are none.
    """

    messages: Sender
    lagged: Receiver | None = None

    @property
    def waited(self) -> float:
        """Seconds spent waiting for the neighbour."""
        return self.messages.waited + (self.lagged.waited if self.lagged else 0.0)

    def send(self, *tensors: Tensor) -> None:
        """Start sending a message."""
        self.messages.send(*tensors)

    def recv_lagged(self) -> Message:
        """The oldest lagged message; it has been on its way for several steps."""
        assert self.lagged is not None, "the run plan has lagged messages, and so has the edge"
        return self.lagged.recv()

    def finish(self, pending: int) -> None:
        """Wait until every message has been taken over, once both ends have done the same step.

        Args:
            pending: lagged messages that are on their way and will not be applied any more.
        """
        if self.lagged is not None:
            self.lagged.drain(pending)
        self.messages.finish()
