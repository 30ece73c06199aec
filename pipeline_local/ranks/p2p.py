"""Sends single tensors between two processes: one class per transport.

    GlooP2P      CPU tensors over gloo
    StagedP2P    GPU tensors over gloo, through pinned host memory (several ranks on one GPU)
    NcclP2P      GPU tensors over nccl

Every edge has a two-rank process group of its own, so nothing on it can be reordered or blocked
by another edge.
"""

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
import torch.distributed as dist
from torch import Tensor

from pipeline_local.errors import NeighbourLostError, UserError, first_line
from pipeline_local.user_input.registry import Registry


@dataclass(frozen=True)
class Pending:
    """A transfer under way. It holds its tensor, so that the memory stays while it is needed.

    Attributes:
        tensor: the tensor that is sent, or received into.
        wait: returns the tensor once it may be read (received) or written again (sent).
    """

    tensor: Tensor
    wait: Callable[[], Tensor]


@runtime_checkable
class P2P(Protocol):
    """One end of a connection; tensors arrive in the order in which they were sent."""

    def isend(self, tensor: Tensor) -> Pending:
        """Starts sending; the tensor must not be written before the wait is over."""
        ...

    def irecv(self, shape: tuple[int, ...], dtype: torch.dtype) -> Pending:
        """Posts a receive."""
        ...


P2PS: Registry[Callable[..., P2P]] = Registry(
    "parallel.backend", kind="transport", given=("group", "peer", "device")
)
"""All ways in which a tensor crosses, by name (`parallel.backend`; `staged` is derived).

An entry makes one end of an edge: from the process group of its two ranks, the global rank of the
other end, and this rank's device. Where its attribute `by_device` is true, the group is of the
device's own backend, and lagged messages go another way (`lagged_kind`). One whose attribute
`derived` is true is never named by a user.
"""

P2PKind = str
"""Name of a transport: one of `P2PS`, or `python:package.module:name`."""
HOST_BACKEND = "gloo"
"""torch's backend for CPU tensors."""


def choose(wanted: str | None, gpus: int, ranks: int) -> P2PKind:
    """Returns the transport by which a rank can talk to its neighbours.

    Args:
        wanted: `parallel.backend`.
        gpus: of this host.
        ranks: of this host.

    Raises:
        UserError: nccl was asked for without a GPU for every rank.
    """
    if wanted not in (None, "gloo", "nccl"):
        return wanted  # a user's own
    own_gpu = gpus >= ranks
    if wanted == "nccl" and not own_gpu:
        raise UserError(
            f"parallel.backend=nccl needs a GPU for each of the {ranks} ranks of this host, got"
            f" {gpus}; start fewer ranks or use parallel.backend=gloo"
        )
    if gpus == 0:
        return "gloo"
    return "nccl" if own_gpu and wanted != "gloo" else "staged"


def common(kinds: Sequence[P2PKind]) -> P2PKind:
    """Returns the transport of all ranks of a run, given that of each.

    Raises:
        UserError: some ranks have GPUs and others have none.
    """
    found = set(kinds)
    if "gloo" in found and len(found) > 1:
        raise UserError(
            f"{kinds.count('gloo')} of {len(kinds)} ranks see no GPU; start all of them on hosts"
            f" with GPUs, or hide those with CUDA_VISIBLE_DEVICES="
        )
    return "staged" if "staged" in found else kinds[0]


def by_device(kind: P2PKind) -> bool:
    """Whether tensors go from device to device, by the backend of the device."""
    return getattr(P2PS.find(kind), "by_device", False)


def device_backend(device: torch.device) -> str:
    """Returns torch's backend between devices of this type: nccl for those of NVIDIA and AMD."""
    return dist.get_default_backend_for_device(device)


def lagged_kind(kind: P2PKind) -> P2PKind:
    """Returns the transport of lagged messages where all others go by `kind`.

    A receive that nccl has posted keeps its device busy until the message is there, and whatever
    the host waits for on that device (pinned memory, a kernel that is loaded) waits, too. Down the
    chain that ends; with a message from below it would be a cycle (seen on an H200).
    """
    return "staged" if by_device(kind) else kind


class GlooP2P:
    """CPU tensors over gloo.

    Args:
        group: the edge's process group.
        peer: the global rank of the other end.
        pinned: whether to receive into page-locked memory, for a fast copy to a GPU.
    """

    def __init__(self, group: dist.ProcessGroup, peer: int, pinned: bool = False) -> None:
        self._group = group
        self._peer = peer
        self._pinned = pinned

    def isend(self, tensor: Tensor) -> Pending:
        """Starts sending a CPU tensor."""
        tensor = tensor.contiguous()
        return self._start(dist.isend, tensor)

    def irecv(self, shape: tuple[int, ...], dtype: torch.dtype) -> Pending:
        """Posts a receive into newly allocated memory."""
        return self._start(dist.irecv, torch.empty(shape, dtype=dtype, pin_memory=self._pinned))

    def _start(self, operation: Callable[..., dist.Work | None], tensor: Tensor) -> Pending:
        with _neighbour(self._peer):
            work = operation(tensor, self._peer, self._group)
        assert work is not None, "only the two ranks of an edge use its group"

        def wait() -> Tensor:
            with _neighbour(self._peer):
                work.wait()
            return tensor

        return Pending(tensor, wait)


@P2PS.add("gloo")
def gloo(group: dist.ProcessGroup, peer: int, device: torch.device) -> GlooP2P:
    """CPU tensors over gloo."""
    return GlooP2P(group, peer)


def is_own(error: RuntimeError) -> bool:
    """Returns whether an error tells of this rank alone, and not of a connection that broke.

    Torch reports memory of a CPU that is full by its message only.
    """
    kinds = (torch.OutOfMemoryError, NotImplementedError, RecursionError)
    return isinstance(error, kinds) or "can't allocate memory" in str(error)


@contextmanager
def _neighbour(peer: int) -> Iterator[None]:
    """Shortens gloo's report of a closed connection, a RuntimeError with a page of advice."""
    try:
        yield
    except RuntimeError as error:
        if is_own(error):
            raise
        reason = first_line(error)
        raise NeighbourLostError(peer, reason) from error


@P2PS.add("staged")
class StagedP2P:
    """GPU tensors over gloo, through pinned host memory.

    The copy to the host has a stream of its own and the wait for it a thread of its own, so that
    neither the compute stream nor the training thread waits.
    """

    derived = True

    def __init__(self, group: dist.ProcessGroup, peer: int, device: torch.device) -> None:
        self._gloo = GlooP2P(group, peer, pinned=True)
        self._device = device
        self._stream = torch.Stream(device)
        # A new thread's device is GPU 0, where waiting would take memory for a context.
        here = torch.accelerator.set_device_index
        self._thread = ThreadPoolExecutor(1, "staged-p2p", initializer=here, initargs=(device,))

    def isend(self, tensor: Tensor) -> Pending:
        """Starts copying to the host, and sends from there."""
        host = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)
        self._stream.wait_stream(torch.accelerator.current_stream(self._device))
        with self._stream:
            host.copy_(tensor, non_blocking=True)
            copied = self._stream.record_event()

        def send() -> Tensor:
            copied.synchronize()
            self._gloo.isend(host).wait()
            return tensor

        return Pending(tensor, self._thread.submit(send).result)

    def irecv(self, shape: tuple[int, ...], dtype: torch.dtype) -> Pending:
        """Posts a receive into pinned memory; the wait queues the copy to the device."""
        arriving = self._gloo.irecv(shape, dtype)
        return Pending(arriving.tensor, lambda: arriving.wait().to(self._device, non_blocking=True))


@P2PS.add("nccl")
class NcclP2P:
    """GPU tensors over nccl. Waiting for a receive only orders streams; the host goes on.

    Receives are posted on a side stream: on the compute stream they would queue behind all the
    work that is already there, and the transfer could not overlap it.
    """

    by_device = True

    def __init__(self, group: dist.ProcessGroup, peer: int, device: torch.device) -> None:
        self._group = group
        self._peer = peer
        self._device = device
        self._stream = torch.Stream(device)

    def isend(self, tensor: Tensor) -> Pending:
        """Starts sending once the compute stream has made the tensor; the wait blocks the host."""
        tensor = tensor.contiguous()
        work = dist.isend(tensor, self._peer, self._group)
        assert work is not None, "only the two ranks of an edge use its group"
        with self._stream:
            work.wait()
            sent = self._stream.record_event()

        def wait() -> Tensor:
            sent.synchronize()
            return tensor

        return Pending(tensor, wait)

    def irecv(self, shape: tuple[int, ...], dtype: torch.dtype) -> Pending:
        """Posts a receive on the side stream; the wait makes the compute stream wait for it."""
        with self._stream:
            tensor = torch.empty(shape, dtype=dtype, device=self._device)
            work = dist.irecv(tensor, self._peer, self._group)
        assert work is not None, "only the two ranks of an edge use its group"

        def wait() -> Tensor:
            work.wait()
            tensor.record_stream(torch.accelerator.current_stream(self._device))
            return tensor

        return Pending(tensor, wait)
