"""A module's body: its blocks in order, with or without activation checkpointing."""

from collections.abc import Sequence
from contextlib import AbstractContextManager, ExitStack

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from pipeline_local import seeds
from pipeline_local.errors import UserError
from pipeline_local.learning.compiler import compile_part
from pipeline_local.learning.precision import wide_norms
from pipeline_local.side_effects.untouched import Buffers


class Body(nn.Sequential):
    """The blocks of a module in order: activations [B, ...] -> activations [B, ...].

    In training each block draws from Python's and NumPy's generators as if it were alone, so that
    it can be recomputed alone; activation checkpointing puts torch's generators back itself.

    Args:
        blocks: the blocks, in order.
        recompute: use activation checkpointing: keep only the input of each block, and recompute
            its activations in the backward pass (Chen et al., 2016).
    """

    def __init__(self, blocks: Sequence[nn.Module], recompute: bool = False) -> None:
        super().__init__(*blocks)
        self.recompute = recompute

    def forward(self, x: Tensor) -> Tensor:
        """Run all blocks: activations [B, ...] -> activations [B, ...].

        Raises:
            UserError: inputs are numbers of rows that an embedding does not have.
        """
        try:
            return self._through(x)
        except IndexError as error:
            _explain_ids(self, x, error)
            raise

    def _through(self, x: Tensor) -> Tensor:
        for block in self:
            if not torch.is_grad_enabled():
                x = block(x)
                continue
            seed = seeds.branch()
            x = self._again(block, x, seed) if self.recompute else block(x)
        return x

    def compile_blocks(self, **options: str) -> None:
        """Compile each block on its own, with the options of `torch.compile`."""
        for block in self:
            compile_part(block, **options)

    def _again(self, block: nn.Module, x: Tensor, seed: int) -> Tensor:
        def contexts() -> tuple[_FirstRun, _SecondRun]:
            buffers = Buffers(block)
            return _FirstRun(buffers), _SecondRun(buffers, seed, wide_norms())

        y: Tensor = checkpoint(block, x, use_reentrant=False, context_fn=contexts)
        return y


class _FirstRun(AbstractContextManager[None]):
    """Of a block that is recomputed later."""

    def __init__(self, buffers: Buffers) -> None:
        self._buffers = buffers

    def __exit__(self, *_: object) -> None:
        self._buffers.forget_constants()


class _SecondRun(AbstractContextManager[None]):
    """The same as the first; a double backward enters it twice."""

    def __init__(self, buffers: Buffers, seed: int, norms: AbstractContextManager[object]) -> None:
        self._buffers, self._seed, self._norms = buffers, seed, norms
        self._inside = ExitStack()

    def __enter__(self) -> None:
        self._inside.enter_context(self._buffers.again())
        self._inside.enter_context(self._norms)
        seeds.seed_host(self._seed)

    def __exit__(self, *error: object) -> None:
        self._inside.close()


def _explain_ids(network: nn.Module, x: Tensor, error: IndexError) -> None:
    """Says which ids an embedding does not have; nothing where that is not the reason.

    That of the tokens is the largest: another one may be of positions.
    """
    rows = [m.num_embeddings for m in network.modules() if isinstance(m, nn.Embedding)]
    if x.is_floating_point() or not x.numel() or not rows:
        return
    least, most = int(x.min()), int(x.max())
    if not 0 <= least <= most < max(rows):
        raise UserError(
            f"data: inputs must be from 0 to {max(rows) - 1}, as the network's embedding has"
            f" {max(rows)} rows: got {least} to {most}; give it more rows, or clean the data"
        ) from error
