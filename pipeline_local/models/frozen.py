"""Layers that the user has set to evaluation mode stay in it, whatever their block does."""

from collections.abc import Sequence
from typing import Any

from torch import nn


class _Frozen(nn.Module):
    """What a block's own class inherits from, too; the names of its tensors stay as they are."""

    frozen: tuple[str, ...]

    def train(self, mode: bool = True) -> Any:  # noqa: ANN401 (the block's own class)
        """As the block's own, but for the frozen layers."""
        super().train(mode)
        for path in self.frozen:
            if path:
                self.get_submodule(path).train(False)
            else:
                super().train(False)
        return self


def freeze(block: nn.Module, paths: Sequence[str]) -> None:
    """Set the layers of these paths to evaluation mode, for good: in copies of the block, too."""
    kind = type(block)
    body = {"__module__": kind.__module__, "frozen": tuple(paths)}
    block.__class__ = type(kind.__name__, (_Frozen, kind), body)
    block.train(block.training)
