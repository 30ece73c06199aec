"""Mixed precision: which operations of a network run in bfloat16 or float16."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from torch.overrides import TorchFunctionMode

_LOW = torch.bfloat16, torch.float16


def autocast(device_type: str, networks: torch.dtype) -> AbstractContextManager[None]:
    """A context in which a network computes as `precision` says.

    Args:
        device_type: torch's name of the type of device.
        networks: what they compute in; bfloat16 and float16 turn autocast on, any other off.
    """
    if networks in _LOW:
        return _low(device_type, networks)
    if not torch.is_autocast_enabled(device_type):
        return nullcontext()
    return torch.autocast(device_type, torch.bfloat16, enabled=False)


@contextmanager
def _low(device_type: str, networks: torch.dtype) -> Iterator[None]:
    with torch.autocast(device_type, networks), wide_norms(device_type):
        yield


def wide_norms(device_type: str = "cpu") -> AbstractContextManager[object]:
    """A context in which layer norms compute in float32 where autocast is on now, on any device.

    CUDA's autocast does so. A CPU's does not, and there the gradients of a layer norm's weight and
    bias are sums in bfloat16, which stop growing: 256 + 1 = 256.
    """
    needed = device_type == "cpu" and torch.is_autocast_enabled("cpu")
    return _WideNorms() if needed else nullcontext()


class _WideNorms(TorchFunctionMode):
    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: object,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:  # noqa: ANN401 (whatever the function gives)
        kwargs = kwargs or {}
        if func in (functional.layer_norm, torch.layer_norm, torch.native_layer_norm):
            args = tuple(map(_wide, args))
            kwargs = {name: _wide(value) for name, value in kwargs.items()}
        return func(*args, **kwargs)


def _wide(value: Any) -> Any:  # noqa: ANN401 (any argument)
    return value.float() if isinstance(value, Tensor) and value.dtype in _LOW else value
