"""A snapshot: copies of tensors on the host, in memory that later snapshots reuse."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class HostCopies:
    """Copies of tensors, which may still be under way.

    Attributes:
        tensors: contiguous tensors on the host, to be read once `arrive` has returned.
        arrive: waits for the copies, and returns the seconds by which they held up the device
            (0 on a CPU: there the copies are made before `take` returns).
    """

    tensors: dict[str, Tensor]
    arrive: Callable[[], float]


class Snapshot:
    """A buffer on the host for one module's state, as large as the state itself."""

    def __init__(self) -> None:
        self._buffers: dict[str, Tensor] = {}

    def take(self, tensors: Mapping[str, Tensor]) -> HostCopies:
        """Copies tensors as they are now; overwrites the copies that were taken before.

        The tensors may be written again as soon as this returns, on the current stream.
        """
        self._buffers = {name: self._buffer_for(name, tensor) for name, tensor in tensors.items()}
        pairs = [(self._buffers[name], tensor) for name, tensor in tensors.items()]
        devices = {tensor.device for tensor in tensors.values() if tensor.device.type != "cpu"}
        if devices:
            return HostCopies(self._buffers, _copy_beside(pairs, devices.pop()))
        for buffer, tensor in pairs:
            buffer.copy_(tensor)
        return HostCopies(self._buffers, lambda: 0.0)

    def _buffer_for(self, name: str, tensor: Tensor) -> Tensor:
        buffer = self._buffers.get(name)
        if buffer is not None and buffer.shape == tensor.shape and buffer.dtype == tensor.dtype:
            return buffer
        return torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=tensor.device.type != "cpu")


def _copy_beside(pairs: list[tuple[Tensor, Tensor]], device: torch.device) -> Callable[[], float]:
    """Queues the copies on a side stream, so that the host goes on at once.

    The compute stream waits for them, as the next forward pass writes running statistics; the host
    can queue work meanwhile. Events take the time, as a host clock cannot measure it.
    """
    compute = torch.accelerator.current_stream(device)
    side = torch.Stream(device)
    begin, end = (torch.Event(device, enable_timing=True) for _ in range(2))
    side.wait_stream(compute)
    with side:
        begin.record(side)
        for buffer, tensor in pairs:
            buffer.copy_(tensor, non_blocking=True)
        end.record(side)
    compute.wait_event(end)

    def arrive() -> float:
        with torch.accelerator.device_index(
            device.index
        ):  # or a thread of GPU 0 takes memory there
            end.synchronize()
        return float(begin.elapsed_time(end)) / 1000

    return arrive
