"""Which axis of a network's activations holds the channels: found by watching its layers."""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any, get_args

import torch
from torch import Tensor, nn
from torch.nn.modules import batchnorm, conv, instancenorm, pooling

from pipeline_local.layout import POSITIONS, Layout

_FIRST = (conv._ConvNd, batchnorm._BatchNorm, instancenorm._InstanceNorm, nn.GroupNorm)
_POOLS: tuple[type[nn.Module], ...] = (pooling._MaxPoolNd, pooling._AvgPoolNd)
_POOLS += (pooling._AdaptiveMaxPoolNd, pooling._AdaptiveAvgPoolNd)
_LAST = (nn.Linear, nn.MultiheadAttention, nn.RNNBase)
_ONE_DIMENSIONAL = (nn.Conv1d, nn.ConvTranspose1d, nn.BatchNorm1d, nn.MaxPool1d, nn.AvgPool1d)


class LayoutError(ValueError):
    """The blocks' outputs have different layouts, or one that has no name."""


@torch.no_grad()
def find(blocks: Sequence[nn.Module], x: Tensor, said: Layout | None = None) -> Layout:
    """The layout of the outputs of a network's blocks.

    Convolutions, batch norms and pools take channels first, linear layers and layer norms last:
    the layer that an activation meets first decides. Where none tells, maps are NCHW, and 3-D
    activations NCT if the blocks hold 1-D convolutions, norms or pools, else NTC.

    Args:
        blocks: in evaluation mode, the classifier last.
        x: a batch for the first one.
        said: by the user, instead of what is found.

    Raises:
        LayoutError: the blocks' outputs have different layouts, or one that has no name.
    """
    shapes: list[tuple[int, ...]] = []
    takers: list[nn.Module] = []
    for block in blocks:
        with _watched(block, x) as found:
            x = block(x)
        takers += found if shapes else []
        shapes.append(tuple(x.shape))
    del shapes[-1]
    axes = {len(shape) for shape in shapes}
    named = [layout for layout in get_args(Layout) if axes == {len(layout)}]
    if not named or said not in (None, *named):
        raise LayoutError(f"the blocks give {_few(shapes)}{f' and not {said}' if said else ''}")
    return said or _chosen(named, takers, blocks)


def _chosen(named: list[Layout], takers: list[nn.Module], blocks: Sequence[nn.Module]) -> Layout:
    """Of layouts with the same number of axes, channels first before channels last."""
    first, last = named[0], named[-1]
    if first == last:
        return first
    says_first = [layer for layer in takers if isinstance(layer, (*_FIRST, *_POOLS))]
    says_last = [layer for layer in takers if isinstance(layer, _LAST) or _normalizes_last(layer)]
    if says_first and says_last:
        names = ", ".join(type(layers[0]).__name__ for layers in (says_first, says_last))
        raise LayoutError(f"some blocks take channels first, others last ({names})")
    if says_first or says_last:
        return first if says_first else last
    held = (layer for block in blocks for layer in block.modules())
    return first if POSITIONS[first] != (2,) or _any_1d(held) else last


def _any_1d(layers: Iterator[nn.Module]) -> bool:
    return any(isinstance(layer, _ONE_DIMENSIONAL) for layer in layers)


def _normalizes_last(layer: nn.Module) -> bool:
    """Not a subclass, which may permute its input, as ConvNeXt's does."""
    shape = getattr(layer, "normalized_shape", ())
    return type(layer) in (nn.LayerNorm, nn.RMSNorm) and len(shape) == 1


@contextmanager
def _watched(block: nn.Module, x: Tensor) -> Iterator[list[nn.Module]]:
    """The layers of a block that are called with this very tensor."""
    found: list[nn.Module] = []

    def note(layer: nn.Module, args: tuple[Any, ...]) -> None:
        if args and args[0] is x:
            found.append(layer)

    with ExitStack() as stack:
        for layer in block.modules():
            if isinstance(layer, _LAST) or next(layer.children(), None) is None:
                stack.callback(layer.register_forward_pre_hook(note).remove)
        yield found


def _few(shapes: list[tuple[int, ...]]) -> str:
    """Each shape once, in order."""
    return ", ".join(str(list(shape)) for shape in dict.fromkeys(shapes))
