"""Which axis of a network's activations holds the channels: found by watching its operations."""

from collections.abc import Iterator, Sequence
from typing import get_args

import torch
from torch import Tensor, nn

from pipeline_local.layout import POSITIONS, Layout
from pipeline_local.models.axes import Channels

_ONE_DIMENSIONAL = (nn.Conv1d, nn.ConvTranspose1d, nn.BatchNorm1d, nn.MaxPool1d, nn.AvgPool1d)


class LayoutError(ValueError):
    """The blocks' outputs have different layouts, or one that has no name."""


@torch.no_grad()
def find(blocks: Sequence[nn.Module], x: Tensor, said: Layout | None = None) -> Layout:
    """The layout of the outputs of a network's blocks.

    Convolutions, batch norms and pools take and make channels first, linear layers and layer norms
    last: the operation that an activation meets first decides, and the one that it comes from.
    Where none tells, maps are NCHW, and 3-D activations NCT if the blocks hold 1-D convolutions,
    norms or pools, else NTC; there, sizes must not contradict.

    Args:
        blocks: in evaluation mode, the classifier last.
        x: a batch for the first one.
        said: by the user, instead of what is found.

    Raises:
        LayoutError: the blocks' outputs have different layouts, one that has no name, or one that
            does not show.
    """
    shapes: list[tuple[int, ...]] = []
    seen: list[tuple[int, str]] = []
    for block in blocks:
        with Channels(x) as channels:
            x = block(x)
        seen += channels.taken if shapes else []
        if len(shapes) < len(blocks) - 1 and (axis := channels.made(x)) is not None:
            seen.append((axis, f"what {type(block).__name__} ends with"))
        shapes.append(tuple(x.shape))
    del shapes[-1]
    axes = {len(shape) for shape in shapes}
    named = [layout for layout in get_args(Layout) if axes == {len(layout)}]
    if not named or said not in (None, *named):
        raise LayoutError(f"the blocks give {_few(shapes)}{f' and not {said}' if said else ''}")
    return said or _chosen(named, seen, blocks, shapes)


def _chosen(
    named: list[Layout],
    seen: list[tuple[int, str]],
    blocks: Sequence[nn.Module],
    shapes: list[tuple[int, ...]],
) -> Layout:
    """Of layouts with the same number of axes, channels first before channels last."""
    first, last = named[0], named[-1]
    if first == last:
        return first
    says_first = [name for axis, name in seen if axis == 1]
    says_last = [name for axis, name in seen if axis == len(last) - 1]
    if says_first and says_last:
        names = f"{says_first[0]}, {says_last[0]}"
        raise LayoutError(f"some blocks take channels first, others last ({names})")
    if says_first or says_last:
        return first if says_first else last
    held = (layer for block in blocks for layer in block.modules())
    if POSITIONS[first] == (2,) and _any_1d(held):
        return first
    _check_sizes(shapes)
    return first if POSITIONS[first] != (2,) else last


def _check_sizes(shapes: list[tuple[int, ...]]) -> None:
    """Refuse a guess where one axis alone changes: of positions, mostly all or none do."""
    changing = [axis for axis in range(1, len(shapes[0])) if len({s[axis] for s in shapes}) > 1]
    if 0 < len(changing) < len(shapes[0]) - 1:
        raise LayoutError(
            f"the blocks give {_few(shapes)}, which axis holds channels does not show"
        )


def _any_1d(layers: Iterator[nn.Module]) -> bool:
    return any(isinstance(layer, _ONE_DIMENSIONAL) for layer in layers)


def _few(shapes: list[tuple[int, ...]]) -> str:
    """Each shape once, in order."""
    return ", ".join(str(list(shape)) for shape in dict.fromkeys(shapes))
