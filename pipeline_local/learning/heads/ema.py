"""A head that begins with a read-only copy of the next module's first block (MAN++, 2025).

The copy follows the block's parameters as a running mean. It has no optimizer and no gradients of
its own: the gradient only passes through it, to the activations.
"""

import copy
from collections.abc import Iterator
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor, nn

from pipeline_local.errors import counted
from pipeline_local.layout import Layout
from pipeline_local.learning.heads.has_copy import HasCopy
from pipeline_local.learning.heads.head import HEADS, Head, Site
from pipeline_local.learning.heads.layers import channels, linear_head, output_shape, reset


class ChannelScale(nn.Module):
    """A learned scale and bias for each channel: [B, ...] -> [B, ...].

    Args:
        layout: meaning of the axes.
        shape: shape of one sample.
    """

    def __init__(self, layout: Layout, shape: tuple[int, ...]) -> None:
        super().__init__()
        count, axis = channels(layout, shape), 0 if layout in ("NCHW", "NCT") else -1
        # vectors, as those of norms: optimizers tell matrices by their axes
        self.weight = nn.Parameter(torch.empty(count))
        self.bias = nn.Parameter(torch.empty(count))
        self._broadcast = [1] * len(shape)
        self._broadcast[axis] = count

    def reset_parameters(self) -> None:
        """Begin with the identity."""
        nn.init.ones_(self.weight)
        nn.init.zeros_(self.bias)

    def forward(self, x: Tensor) -> Tensor:
        """Scale each channel."""
        return x * self.weight.view(self._broadcast) + self.bias.view(self._broadcast)


class EmaHead(Head, HasCopy):
    """A copy of the next block, a scale and bias for each channel, and a linear classifier.

    The copy runs in the head's own mode: while training a batch norm in it normalises by the batch,
    and its running statistics are those of this head's batches, for evaluation.

    Args:
        layers: the layers, in order; the one that is named `copy` is the copy.
        share: what of each published parameter enters the running mean.
    """

    follows = "block"

    def __init__(self, layers: nn.Sequential, share: float) -> None:
        super().__init__(layers)
        self.share = share
        self.copy.requires_grad_(False)

    @property
    def copy(self) -> nn.Module:
        """The copied block."""
        return self.layers.get_submodule("copy")

    @torch.no_grad()
    def initialize(self) -> None:
        """Draw the learned layers afresh; the copy is zero until it begins (`begin`)."""
        for name, layer in self.layers.named_children():
            if name != "copy":
                reset(layer)
        for tensor in [*self.copy.parameters(), *self.copy.buffers()]:
            tensor.zero_()

    @torch.no_grad()
    def begin(self, original: nn.Module) -> None:
        """Take over all parameters and buffers of a block, as they are initialised."""
        for mine, theirs in (
            *zip(self.copy.parameters(), original.parameters(), strict=True),
            *zip(self.copy.buffers(), original.buffers(), strict=True),
        ):
            mine.copy_(theirs)

    @torch.no_grad()
    def follow(self, published: Iterator[Tensor]) -> None:
        """Move the running mean by a share towards the published parameters."""
        for mine, theirs in zip(self.copy.parameters(), published, strict=False):
            mine.lerp_(theirs.to(mine.dtype), self.share)


class Ema:
    """The registry entry: builds the heads, and says how often copies are published."""

    follows = "block"

    def __call__(
        self,
        site: Site,
        *,
        refresh: Annotated[int, Field(ge=1)] = 10,
        decay: Annotated[float, Field(ge=0, lt=1)] = 0.995,
    ) -> EmaHead:
        """Copy the block that follows.

        Args:
            site: where the head is attached.
            refresh: steps from one publication of the block's parameters to the next.
            decay: of the running mean, for each step; 0: the newest publication itself.

        Raises:
            ValueError: the block has no parameters.
        """
        if not any(True for _ in site.later[0].parameters()):
            raise ValueError("the block that it would copy, the next one, has no parameters")
        block = copy.deepcopy(site.later[0])
        shape = output_shape(block, site.shape)
        layers = nn.Sequential()
        layers.add_module("copy", block)
        layers.add_module("scale", ChannelScale(site.layout, shape))
        layers.add_module("classifier", linear_head(site.layout, shape, site.output_shape))
        return EmaHead(layers, 1 - decay**refresh)

    @staticmethod
    def refresh(*, refresh: int, decay: float) -> int:
        """The steps from one publication to the next."""
        return refresh

    @staticmethod
    def title(*, refresh: int, decay: float) -> str:
        """The options, for people."""
        return f"copies every {counted(refresh, 'step')}"


HEADS.add("ema", Ema())
