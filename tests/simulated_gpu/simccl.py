"""Messages between simulated GPUs, with the manners of NCCL.

A transfer has a stream of its own, which follows the stream that is current when it is asked for.
`wait` makes the then current stream follow the transfer; the host goes on. Underneath, gloo carries
the bytes on threads.
"""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta

import torch
import torch.distributed as dist
from torch import Tensor


class Transfer(dist.Work):
    """A transfer under way."""

    def __init__(self, end: torch.Event, device: torch.device) -> None:
        super().__init__()
        self._end = end
        self._device = device

    def wait(self, timeout: timedelta | None = None) -> bool:
        torch.accelerator.current_stream(self._device).wait_event(self._end)
        return True


class Simccl(dist.ProcessGroup):
    """Messages; every pair of ranks has one order for each direction."""

    def __init__(self, store: dist.Store, rank: int, size: int, timeout: timedelta) -> None:
        super().__init__(rank, size)
        self._gloo = dist.ProcessGroupGloo(store, rank, size, timeout)
        self._threads = {act: ThreadPoolExecutor(1, f"simccl-{act}") for act in ("send", "recv")}
        self._stream: torch.Stream | None = None

    def getBackendName(self) -> str:  # noqa: N802 (torch's)
        return "simccl"

    def send(self, tensors: list[Tensor], to: int, tag: int) -> Transfer:
        (tensor,) = tensors
        stream = self._following(tensor.device)
        ticket = torch.ops.simgpu.draw_ticket()
        with stream:
            message = torch.ops.simgpu.outgoing(tensor, ticket)
        self._begin("send", ticket, lambda: self._gloo.send([message], to, tag))
        return Transfer(stream.record_event(), tensor.device)

    def recv(self, tensors: list[Tensor], origin: int, tag: int) -> Transfer:
        (tensor,) = tensors
        message = torch.empty(tensor.shape, dtype=tensor.dtype)
        ticket = torch.ops.simgpu.draw_ticket()
        stream = self._following(tensor.device)
        with stream:
            torch.ops.simgpu.incoming(tensor, message, ticket)
        self._begin("recv", ticket, lambda: self._gloo.recv([message], origin, tag))
        return Transfer(stream.record_event(), tensor.device)

    def allreduce(self, tensors: list[Tensor], options: object) -> dist.Work:
        return self._gloo.allreduce(tensors, options)  # of the host's tensors only

    def allgather(
        self, outputs: list[list[Tensor]], inputs: list[Tensor], options: object
    ) -> dist.Work:
        return self._gloo.allgather(outputs, inputs, options)

    def broadcast(self, tensors: list[Tensor], options: object) -> dist.Work:
        return self._gloo.broadcast(tensors, options)

    def _begin(self, act: str, ticket: int, start: Callable[[], dist.Work]) -> None:
        def carry() -> None:
            try:
                start().wait()
            finally:  # where a neighbour is gone, memory stays as it is
                torch.ops.simgpu.redeem_ticket(ticket)

        self._threads[act].submit(carry)

    def _following(self, device: torch.device) -> torch.Stream:
        if self._stream is None:
            self._stream = torch.Stream(device)
        self._stream.wait_stream(torch.accelerator.current_stream(device))
        return self._stream


def register() -> None:
    """Make it the library that torch uses between simulated GPUs."""
    dist.Backend.register_backend("simccl", Simccl, devices=["simgpu"])
