"""The replicas of a stage: ranks that hold the same modules and learn from different microbatches.

The microbatches of a batch are dealt to them round-robin. All of them add up their gradients before
an update, so that each does the update that one rank with all microbatches would do.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext

import torch
import torch.distributed as dist
from torch import Tensor

BUCKET_BYTES = 25 << 20
"""Bytes that are reduced at once, as DDP does: the first bucket is on its way while the next is
filled."""


class Replicas:
    """One rank among the replicas of its stage.

    Args:
        group: of all replicas of the stage; None: there is only this one.
        waiting: a context for the time in which this one waits for the others, which may turn
            torch's errors into better ones.
    """

    def __init__(
        self,
        group: dist.ProcessGroup | None = None,
        waiting: Callable[[], AbstractContextManager[None]] = nullcontext,
    ) -> None:
        self.group = group
        self.waiting = waiting
        self.size = 1 if group is None else group.size()
        """Number of replicas."""
        self.index = 0 if group is None else group.rank()
        """The index of this replica, from 0."""

    def own(self, microbatches: int) -> list[int]:
        """Return the microbatches of a batch that this replica learns from, in order."""
        return [number for number in range(microbatches) if self.has(number)]

    def has(self, microbatch: int) -> bool:
        """Return whether a microbatch is one that this replica learns from."""
        return self.of(microbatch) == self.index

    def of(self, microbatch: int) -> int:
        """Return the index of the replica that learns from a microbatch."""
        return replica_of(microbatch, self.size)

    def share(self, tensor: Tensor) -> Tensor:
        """Return what this replica adds to the mean of a tensor.

        Shares of equal numbers add up to that very number: a table stays as it is.
        """
        if self.group is None:
            return tensor
        is_exact = self.size & (self.size - 1) == 0  # a power of two
        return (tensor if is_exact else tensor.double()) / self.size

    def sum(self, tensors: Sequence[Tensor]) -> Callable[[], list[Tensor]]:
        """Begin to add up tensors of all replicas.

        Args:
            tensors: of any shapes, the same on all replicas; this copies them at once.

        Returns:
            A function that waits for the sums, and returns them in the same order; of one replica
            alone they are the tensors themselves.
        """
        if self.group is None:
            return lambda: list(tensors)
        shapes = [tensor.shape for tensor in tensors]
        buckets = list(_buckets(tensors))
        flat = [_flat(tensors, bucket) for bucket in buckets]
        works = [dist.all_reduce(whole, group=self.group, async_op=True) for whole in flat]

        def wait() -> list[Tensor]:
            found: dict[int, Tensor] = {}
            for work, whole, bucket in zip(works, flat, buckets, strict=True):
                assert work is not None, "this rank is in the group"
                with self.waiting():
                    work.wait()
                found |= zip(bucket, _parts(whole, [shapes[i] for i in bucket]), strict=True)
            return [found[i] for i in range(len(shapes))]

        return wait

    def take(self, tensors: Sequence[Tensor], source: int) -> None:
        """Replace tensors by those of one replica, and wait for it.

        Args:
            tensors: of any shapes, the same on all replicas.
            source: index of the replica.
        """
        if self.group is None:
            return
        for bucket in _buckets(tensors):
            whole = _flat(tensors, bucket)
            with self.waiting():
                dist.broadcast(whole, group=self.group, group_src=source)
            kept = [tensors[i] for i in bucket]
            replace(kept, _parts(whole, [tensor.shape for tensor in kept]))

    def gather(self, named: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return the tensors of all replicas on the first one, on the CPU, and its own elsewhere.

        Args:
            named: by names that no other replica uses.
        """
        if self.group is None:
            return dict(named)
        own = {name: tensor.cpu() for name, tensor in named.items()}
        found: list[dict[str, Tensor]] | None = [{}] * self.size if self.index == 0 else None
        with self.waiting():
            dist.gather_object(own, found, group=self.group, group_dst=0)
        return {name: t for each in found or [own] for name, t in each.items()}


def replica_of(microbatch: int, replicas: int) -> int:
    """Return which replica of a stage learns from a microbatch: they are dealt round-robin."""
    return microbatch % replicas


@torch.no_grad()
def replace(tensors: Sequence[Tensor], values: Sequence[Tensor]) -> None:
    """Give each tensor the value of another one of its shape."""
    for tensor, value in zip(tensors, values, strict=True):
        tensor.copy_(value)


@torch.no_grad()
def _flat(tensors: Sequence[Tensor], bucket: Sequence[int]) -> Tensor:
    """Return a copy of some of the tensors, one after the other."""
    return torch.cat([tensors[i].reshape(-1) for i in bucket])


def _parts(whole: Tensor, shapes: Sequence[torch.Size]) -> list[Tensor]:
    """Return views of a flat tensor, of these shapes, one after the other."""
    parts = torch.split(whole, [shape.numel() for shape in shapes])
    return [part.view(shape) for part, shape in zip(parts, shapes, strict=True)]


def _buckets(tensors: Sequence[Tensor]) -> Iterator[list[int]]:
    """Indices of tensors of one dtype and device, in order, as many as a bucket holds."""
    kinds = [(str(tensor.dtype), str(tensor.device)) for tensor in tensors]
    bucket: list[int] = []
    size = 0
    for i in sorted(range(len(tensors)), key=kinds.__getitem__):
        alike = not bucket or kinds[bucket[0]] == kinds[i]
        if bucket and (not alike or size + tensors[i].nbytes > BUCKET_BYTES):
            yield bucket
            bucket, size = [], 0
        bucket.append(i)
        size += tensors[i].nbytes
    if bucket:
        yield bucket
