"""Which memory operations write to: a block must leave its input as it is."""

import copy
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter


class Writes(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Notes the storages that operations write to, by whatever view or name of them."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._written: set[int] = set()

    def to(self, tensor: Tensor) -> bool:
        """Return whether an operation has written to the memory of this tensor."""
        return tensor.untyped_storage()._cdata in self._written

    def __torch_dispatch__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:  # noqa: ANN401 (whatever the operation returns)
        """Run the operation and note what it writes to."""
        for tensor in written(func, args, kwargs or {}):
            self._written.add(tensor.untyped_storage()._cdata)
        return func(*args, **(kwargs or {}))


def written(func: Any, args: Sequence[Any], kwargs: dict[str, Any]) -> Iterator[Tensor]:  # noqa: ANN401
    """The tensors among the arguments of an operation of torch's that it writes to."""
    for position, argument in enumerate(func._schema.arguments):
        if argument.alias_info is None or not argument.alias_info.is_write:
            continue
        given = args[position] if position < len(args) else kwargs.get(argument.name)
        yield from (tensor for tensor in tree_iter(given) if isinstance(tensor, Tensor))


def keeps_input(part: nn.Module, x: Tensor) -> bool:
    """Whether a part on the meta device leaves its input [B, ...] alone, in both modes.

    What cannot be run there, because values decide what it does, may not.
    """
    for training in (True, False):
        given = x.clone()
        storage = given.untyped_storage()._cdata
        try:
            with torch.no_grad(), Writes() as writes:
                copy.deepcopy(part).train(training)(given)
        except Exception:  # the user's own code; what is wrong with it shows later
            return False
        if writes.to(given) or given.untyped_storage()._cdata != storage:
            return False
    return True


def on_a_copy(part: nn.Module) -> None:
    """Let a block or a head work on a copy of its input, which others keep or send."""
    part.register_forward_pre_hook(_copied)


def _copied(_: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
    return args[0].clone(), *args[1:]
