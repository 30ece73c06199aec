"""A module's body: its blocks in order, with or without activation checkpointing."""

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import partial

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint


class Body(nn.Sequential):
    """The blocks of a module in order: activations [B, ...] -> activations [B, ...].

    Args:
        blocks: the blocks, in order.
        recompute: use activation checkpointing: keep only the input of each block, and recompute
            its activations in the backward pass (Chen et al., 2016).
    """

    def __init__(self, blocks: Sequence[nn.Module], recompute: bool = False) -> None:
        super().__init__(*blocks)
        self.recompute = recompute

    def forward(self, x: Tensor) -> Tensor:
        """Run all blocks: activations [B, ...] -> activations [B, ...]."""
        for block in self:
            x = self._again(block, x) if self.recompute and torch.is_grad_enabled() else block(x)
        return x

    def compile_blocks(self, **options: str) -> None:
        """Compile each block on its own, with the options of `torch.compile`."""
        for block in self:
            compile_part(block, **options)

    def _again(self, block: nn.Module, x: Tensor) -> Tensor:
        contexts = partial(_first_and_second_run, block)
        y: Tensor = checkpoint(block, x, use_reentrant=False, context_fn=contexts)
        return y


def compile_part(part: nn.Module, **options: str) -> None:
    """Compile a block or a head with the options of `torch.compile`, for static shapes.

    All blocks of a class share one cache of graphs: one per shape, for training, for evaluation,
    and for the second run of a recomputed block. At eight graphs torch stops and goes on
    uncompiled. It may do so between the two runs of a block, which then save different tensors.
    So its limit is raised.
    """
    from torch._dynamo import config  # takes a second to import

    config.recompile_limit = config.accumulated_recompile_limit
    part.compile(dynamic=False, **options)


def _first_and_second_run(
    block: nn.Module,
) -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
    return nullcontext(), FrozenStatistics(block)


class FrozenStatistics(AbstractContextManager[None]):
    """A context in which batch norms use the batch's statistics and keep their running ones.

    They still update them, with a momentum of zero, as a recomputation must save the same tensors
    for the backward pass as the first run did. The context can be entered repeatedly, as a double
    backward recomputes twice.

    Args:
        module: the module whose batch norms are frozen.
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
