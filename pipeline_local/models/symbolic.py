"""Whether two computations are the same, without doing them: on the meta device, by names.

Every tensor gets a name that says how it was computed: the operation, its arguments, and the names
of its operands. Equal names are equal values, on any device, for tensors of any size.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter

from pipeline_local.side_effects.writes import written

_ADD = torch.ops.aten.add.Tensor
_VALUE = torch.ops.aten._local_scalar_dense.default


class Symbolic(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Names what operations compute on meta tensors.

    A name belongs to memory: views of it share it and differ in their geometry, and who writes to
    it changes it. Tensors from before are named after their memory. A question whether all of
    something is so is answered with yes: masks ask whether positions are consecutive.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._names: dict[int, int] = {}
        self._held: list[torch.UntypedStorage] = []  # or another one would get the same number

    def name(self, tensor: Tensor) -> tuple[object, ...]:
        """Return the name of a tensor; where two are equal, so are the values."""
        storage = tensor.untyped_storage()
        memory = self._names.get(storage._cdata)
        if memory is None:
            memory = self._note(storage, hash(("given", storage._cdata)))
        return memory, tuple(tensor.shape), tensor.stride(), tensor.storage_offset(), tensor.dtype

    def _note(self, storage: torch.UntypedStorage, name: int) -> int:
        self._held.append(storage)
        self._names[storage._cdata] = name
        return name

    def __torch_dispatch__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:  # noqa: ANN401 (whatever the operation returns)
        """Run the operation and name what it computes."""
        kwargs = kwargs or {}
        if func is _VALUE and args[0].dtype == torch.bool:
            return True
        operands = [self._term(each) for each in tree_iter((args, kwargs))]
        given = {t.untyped_storage()._cdata for t in tree_iter((args, kwargs)) if _is_tensor(t)}
        result = func(*args, **kwargs)
        if func is _ADD and operands[1:] == ["0"] and self.name(result)[1:] == operands[0][1:]:
            self._note(result.untyped_storage(), operands[0][0])
            return result
        name = hash((str(func), tuple(operands)))
        for tensor in written(func, args, kwargs):
            self._note(tensor.untyped_storage(), name)
        for number, tensor in enumerate(t for t in tree_iter(result) if _is_tensor(t)):
            if tensor.untyped_storage()._cdata not in given:
                self._note(tensor.untyped_storage(), hash((name, number)))
        return result

    def _term(self, operand: object) -> Any:  # noqa: ANN401 (a name, or the text of a number)
        return self.name(operand) if isinstance(operand, Tensor) else str(operand)


def _is_tensor(value: object) -> bool:
    return isinstance(value, Tensor)
