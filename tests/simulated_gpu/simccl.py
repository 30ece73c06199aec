"""Messages between simulated GPUs, with the manners of NCCL.

A transfer has a stream of its own, which follows the stream that is current when it is asked for.
`wait` makes the then current stream follow the transfer; the host goes on. Nobody but the caller
keeps the tensors. Its end waits for all transfers, unless they are aborted first. Underneath, gloo
carries the bytes on threads.
"""

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor, wait
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
        acts = ("send", "recv", "exchange")
        self._threads = {act: ThreadPoolExecutor(1, f"simccl-{act}") for act in acts}
        self._stream: torch.Stream | None = None
        self._under_way: dict[int, Future[None]] = {}

    @property
    def _device_types(self) -> list[torch.device]:
        """Where torch puts objects that it sends."""
        return [torch.device("simgpu")]

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

    def allreduce(self, tensors: list[Tensor], options: dist.AllreduceOptions) -> dist.Work:
        def start(sent: list[Tensor], arriving: list[Tensor]) -> dist.Work:
            arriving[0].copy_(sent[0])
            return self._gloo.allreduce(arriving, options)

        if self is dist.group.WORLD and tensors[0].device.type == "cpu":  # its group has gloo, too
            return self._gloo.allreduce(tensors, options)
        return self._exchange(tensors, tensors, start)

    def broadcast(self, tensors: list[Tensor], options: dist.BroadcastOptions) -> dist.Work:
        def start(sent: list[Tensor], arriving: list[Tensor]) -> dist.Work:
            return self._gloo.broadcast(sent or arriving, options)

        sends = self.rank() == options.rootRank
        return self._exchange(tensors if sends else [], [] if sends else tensors, start)

    def allgather(
        self, outputs: list[list[Tensor]], inputs: list[Tensor], options: object
    ) -> dist.Work:
        def start(sent: list[Tensor], arriving: list[Tensor]) -> dist.Work:
            return self._gloo.allgather([arriving], sent, options)

        return self._exchange(inputs, outputs[0], start)

    def gather(
        self, outputs: list[list[Tensor]], inputs: list[Tensor], options: dist.GatherOptions
    ) -> dist.Work:
        def start(sent: list[Tensor], arriving: list[Tensor]) -> dist.Work:
            return self._gloo.gather([arriving] if arriving else [], sent, options)

        return self._exchange(inputs, outputs[0] if outputs else [], start)

    def _exchange(
        self,
        read: list[Tensor],
        written: list[Tensor],
        start: Callable[[list[Tensor], list[Tensor]], dist.Work],
    ) -> Transfer:
        """Something that all ranks do together.

        Args:
            read: what they hold when the stream is there leaves.
            written: get what arrives.
            start: does it, with tensors of the host in their places.
        """
        sent, arriving = ([torch.empty_like(t, device="cpu") for t in ts] for ts in (read, written))
        (device,) = {tensor.device for tensor in (*read, *written)}
        assert device.type == "simgpu", "as nccl has it, of devices' tensors only"
        ticket = torch.ops.simgpu.draw_ticket()
        stream = self._following(device)
        with stream:
            left = [torch.ops.simgpu.leave(*pair) for pair in zip(read, sent, strict=True)]
            for tensor, message in zip(written, arriving, strict=True):
                torch.ops.simgpu.incoming(tensor, message, ticket)

        def begin() -> dist.Work:
            for place in left:
                torch.ops.simgpu.reach(*place)
            return start(sent, arriving)

        self._begin("exchange", ticket, begin)
        return Transfer(stream.record_event(), device)

    def shutdown(self) -> None:
        wait(self._under_way.values())

    def abort(self) -> None:
        for ticket in [*self._under_way]:
            torch.ops.simgpu.redeem_ticket(ticket)

    def _begin(self, act: str, ticket: int, start: Callable[[], dist.Work]) -> None:
        def carry() -> None:
            try:
                start().wait()
            finally:  # where a neighbour is gone, memory stays as it is
                torch.ops.simgpu.redeem_ticket(ticket)

        self._under_way = {t: f for t, f in self._under_way.items() if not f.done()}
        self._under_way[ticket] = self._threads[act].submit(carry)

    def _following(self, device: torch.device) -> torch.Stream:
        if self._stream is None:
            self._stream = torch.Stream(device)
        self._stream.wait_stream(torch.accelerator.current_stream(device))
        return self._stream


def register() -> None:
    """Make it the library that torch uses between simulated GPUs."""
    dist.Backend.register_backend("simccl", Simccl, devices=["simgpu"])
