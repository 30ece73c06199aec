"""A module's body: its blocks in order, with or without activation checkpointing."""

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import partial

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint


class Body(nn.Sequential):
    """Activations [B, ...] -> activations [B, ...], block by block.

    Args:
        blocks: in order.
        recompute: keep only each block's input, and compute its activations again for the
            backward pass (Chen et al., 2016).
    """

    def __init__(self, blocks: Sequence[nn.Module], recompute: bool = False) -> None:
        super().__init__(*blocks)
        self.recompute = recompute

    def forward(self, x: Tensor) -> Tensor:
        """Through every block."""
        for block in self:
            x = self._again(block, x) if self.recompute and torch.is_grad_enabled() else block(x)
        return x

    def compile_blocks(self, **options: str) -> None:
        """Compile each block by itself, with the options of `torch.compile`."""
        for block in self:
            compile_part(block, **options)

    def _again(self, block: nn.Module, x: Tensor) -> Tensor:
        contexts = partial(_first_and_second_run, block)
        y: Tensor = checkpoint(block, x, use_reentrant=False, context_fn=contexts)
        return y


def compile_part(part: nn.Module, **options: str) -> None:
    """Compile a block or a head, with the options of `torch.compile`, for just the shapes it meets.

    All blocks of a class share one cache of graphs: one per shape, for training, for evaluation,
    and for the second run of a recomputed block. torch stops at eight and goes on uncompiled, if
    need be between the two runs of a block, which then save other tensors: its limit is raised.
    """
    from torch._dynamo import config  # a second of import time that other runs need not spend

    config.recompile_limit = config.accumulated_recompile_limit
    part.compile(dynamic=False, **options)


def _first_and_second_run(
    block: nn.Module,
) -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
    return nullcontext(), FrozenStatistics(block)


class FrozenStatistics(AbstractContextManager[None]):
    """Batch norms use the batch's statistics, and leave their running ones as they are.

    They still touch them, with a momentum of zero: a recomputation must save the same tensors for
    the backward pass as the first run did. May be entered again and again, as a double backward
    recomputes twice.
    """

    def __init__(self, module: nn.Module) -> None:
        tracking = (m for m in module.modules() if getattr(m, "track_running_stats", False))
        self._kept = [(m, m.momentum, m.num_batches_tracked) for m in tracking]

    def __enter__(self) -> None:
        for norm, _, _ in self._kept:
            _set(norm, momentum=0.0, num_batches_tracked=None)

    def __exit__(self, *_: object) -> None:
        for norm, momentum, count in self._kept:
            _set(norm, momentum=momentum, num_batches_tracked=count)


def _set(norm: nn.Module, **values: object) -> None:
    for name, value in values.items():
        setattr(norm, name, value)


def share_memory(a: Tensor, b: Tensor) -> bool:
    """Whether writing to one of them writes to the other, as behind a body that only reshapes."""
    one, other = a.untyped_storage(), b.untyped_storage()
    return bool(one._cdata == other._cdata)  # not the address: a fake tensor has none
