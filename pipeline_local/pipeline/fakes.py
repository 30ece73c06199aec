"""Fake tensors, of which no operation spends memory or time."""

from typing import Any

import torch
from torch._subclasses.fake_tensor import FakeTensorMode

_IN_PLACE = (torch.ops.aten._fused_sgd_.default, torch.ops.aten._fused_adamw_.default)


class Fakes(FakeTensorMode):  # type: ignore[no-untyped-call]
    """A FakeTensorMode that knows fused optimizers.

    They write in place and return nothing, so with fakes there is nothing to do. torch has no fake
    kernels for them and would run the real ones, on zeros as large as the network.
    """

    def __init__(self) -> None:
        super().__init__(allow_non_fake_inputs=True)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:  # noqa: ANN401
        """Pretend to run the operation."""
        if func in _IN_PLACE:
            return None
        return super().__torch_dispatch__(func, types, args, kwargs or {})
