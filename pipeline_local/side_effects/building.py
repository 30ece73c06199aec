"""What a function sets while it builds a model: the meta device would lose it without a word.

A layer of torch's fills its tensors by `reset_parameters` as it is made, and a rank can call that
again for its own blocks alone. Whatever else fills a tensor (`nn.init`, a state dict, a constant)
is done once, by the function: then its values are taken, from a CPU.
"""

import copy
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from types import FrameType
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter

from pipeline_local.side_effects.untouched import modes_kept
from pipeline_local.side_effects.writes import written

_RESETS = ("reset_parameters", "_reset_parameters")
_EMPTY = (
    "empty",
    "empty_like",
    "empty_strided",
    "new_empty",
    "new_empty_strided",
    "empty_permuted",
)
_COPIES = ("clone", "_to_copy")


class Record(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Notes who has given each tensor its values last."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._by: dict[int, nn.Module | str] = {}
        self._held: list[torch.UntypedStorage] = []  # or another one would get the same number

    def by(self, tensor: Tensor) -> nn.Module | str | None:
        """Return the layer whose `reset_parameters` it was, or "nobody", "builder", "made" (with
        values) or "copied" (from what a layer has filled); None: it is older."""
        return self._by.get(tensor.untyped_storage()._cdata)

    def has_reset(self, layer: nn.Module) -> bool:
        """Return whether a layer has filled tensors."""
        return any(by is layer for by in self._by.values())

    def __torch_dispatch__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:  # noqa: ANN401 (whatever the operation returns)
        """Run the operation and note whose it is."""
        result = func(*args, **(kwargs or {}))
        layer = _resetting()
        for tensor in written(func, args, kwargs or {}):
            self._note(tensor, layer or "builder")
        for tensor in tree_iter(result):
            if isinstance(tensor, Tensor) and self.by(tensor) is None:
                self._note(tensor, layer or self._origin(func, args))
        return result

    def _origin(self, func: Any, args: tuple[Any, ...]) -> str:  # noqa: ANN401
        name = func._schema.name.removeprefix("aten::")
        if name in _COPIES:
            source = self.by(args[0])
            return "copied" if isinstance(source, nn.Module) else source or "made"
        return "nobody" if name in _EMPTY else "made"

    def _note(self, tensor: Tensor, by: nn.Module | str) -> None:
        storage = tensor.untyped_storage()
        self._by[storage._cdata] = by
        self._held.append(storage)


def _resetting() -> nn.Module | None:
    """The layer that fills its own tensors just now."""
    frame: FrameType | None = sys._getframe(2)
    while frame is not None:
        layer = frame.f_locals.get("self") if frame.f_code.co_name in _RESETS else None
        if isinstance(layer, nn.Module):
            return layer
        frame = frame.f_back
    return None


def own_tensors(layer: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """A layer's own parameters and buffers."""
    yield from layer.named_parameters(recurse=False)
    yield from layer.named_buffers(recurse=False)


def plain_tensors(layer: nn.Module) -> list[str]:
    """Names of a layer's plain attributes that are tensors, which torch neither moves nor saves."""
    return [name for name, value in vars(layer).items() if isinstance(value, Tensor)]


def loses_values(
    part: nn.Module, initialize: Callable[[nn.Module], object], record: Record
) -> bool:
    """Whether `initialize` would give a part other values than its builder has given it.

    Args:
        part: on the meta device, or not if its builder has said so.
        initialize: fills all tensors of a part.
        record: of the building.
    """
    again, refill = copy.deepcopy(part).to("meta"), Record()
    try:
        with torch.no_grad(), refill:
            initialize(again)
    except Exception:  # it asks for values
        return True
    held = list(part.modules())
    for layer, other in zip(held, again.modules(), strict=True):
        filled = dict(own_tensors(other))
        for name, tensor in own_tensors(layer):
            by = record.by(tensor)
            if by == "nobody" or not tensor.numel():
                continue
            if tensor.device.type != "meta" or refill.by(filled[name]) is None:
                return True
            replaced = by == "made" and record.has_reset(layer)
            outside = isinstance(by, nn.Module) and not any(by is one for one in held)
            if by == "builder" or replaced or outside:
                return True
    return False


@torch.no_grad()
def give_shapes(parts: Sequence[nn.Module], x: Tensor) -> None:
    """Let lazy layers get their tensors, which they do when they are first called.

    Args:
        parts: of a model, in order.
        x: a batch of inputs, on their device.
    """
    layers = [layer for part in parts for layer in part.modules()]
    if not any(is_lazy(tensor) for layer in layers for _, tensor in own_tensors(layer)):
        return
    with modes_kept(*parts):
        for part in parts:
            x = part.eval()(x)


@torch.no_grad()
def fill_rest(
    parts: Sequence[nn.Module], method: Callable[[nn.Module], Any], record: Record
) -> None:
    """Let those layers fill their tensors that have left it to be done later, inner ones first.

    Args:
        parts: of a model, built on the CPU.
        method: gives a layer's own initialisation, if it has one.
        record: of the building.
    """
    for layer in (layer for part in parts for layer in reversed(list(part.modules()))):
        empty = any(record.by(tensor) == "nobody" for _, tensor in own_tensors(layer))
        if empty and (reset := method(layer)):
            reset()


class Values(Mapping[str, Tensor]):
    """The tensors of one block, made when they are first asked for.

    Args:
        make: gives the tensors of all blocks by name.
        block: the name of this one.
    """

    def __init__(self, make: Callable[[], Mapping[str, Mapping[str, Tensor]]], block: str) -> None:
        self._make = make
        self._block = block

    def __getitem__(self, name: str) -> Tensor:
        return self._make()[self._block][name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._make()[self._block])

    def __len__(self) -> int:
        return len(self._make()[self._block])
