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
        """Of this one, from 0."""

    def own(self, microbatches: int) -> range:
        """Return the microbatches of a batch that this replica learns from."""
        return range(self.index, microbatches, self.size)

    def has(self, microbatch: int) -> bool:
        """Return whether a microbatch is one that this replica learns from."""
        return microbatch % self.size == self.index

    def sum(self, tensors: Sequence[Tensor], means: Sequence[Tensor] = ()) -> Callable[[], None]:
        """Begin to replace tensors by their sums over all replicas.

        Args:
            tensors: of any shapes, the same on all replicas; they must not be used meanwhile.
            means: more of them, which are replaced by their means.

        Returns:
            A function that waits for it.
        """
        if self.group is None:
            return _done
        with torch.no_grad():
            for tensor in means:
                tensor.div_(self.size)
        tensors = [*tensors, *means]
        buckets = list(_buckets(tensors))
        flat = [torch.cat([t.reshape(-1) for t in bucket]) for bucket in buckets]
        works = [dist.all_reduce(whole, group=self.group, async_op=True) for whole in flat]

        @torch.no_grad()
        def wait() -> None:
            for work, whole, bucket in zip(works, flat, buckets, strict=True):
                assert work is not None, "this rank is in the group"
                with self.waiting():
                    work.wait()
                _fill(bucket, whole)

        return wait

    def take(self, tensors: Sequence[Tensor], source: int) -> None:
        """Replace tensors by those of one replica, and wait for it.

        Args:
            tensors: of any shapes, the same on all replicas.
            source: index of the replica.
        """
        if self.group is None:
            return
        with torch.no_grad():
            for bucket in _buckets(tensors):
                whole = torch.cat([t.reshape(-1) for t in bucket])
                with self.waiting():
                    dist.broadcast(whole, group=self.group, group_src=source)
                _fill(bucket, whole)

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


def _fill(bucket: Sequence[Tensor], whole: Tensor) -> None:
    """Give tensors the values that lie one after the other in a flat one."""
    parts = torch.split(whole, [t.numel() for t in bucket])
    for tensor, part in zip(bucket, parts, strict=True):
        tensor.copy_(part.view(tensor.shape))


def _done() -> None:
    """Return at once, as nothing is under way."""


def _buckets(tensors: Sequence[Tensor]) -> Iterator[list[Tensor]]:
    """Tensors of one dtype and device, in order, as many as a bucket holds."""
    bucket: list[Tensor] = []
    size = 0
    for tensor in sorted(tensors, key=lambda t: (str(t.dtype), str(t.device))):
        alike = not bucket or (bucket[0].dtype, bucket[0].device) == (tensor.dtype, tensor.device)
        if bucket and (not alike or size + tensor.nbytes > BUCKET_BYTES):
            yield bucket
            bucket, size = [], 0
        bucket.append(tensor)
        size += tensor.nbytes
    if bucket:
        yield bucket
