"""Shape and dtype of a tensor, known before there is one."""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Spec:
    """Shape and dtype of one tensor."""

    shape: tuple[int, ...]
    dtype: torch.dtype

    def check(self, tensor: Tensor) -> None:
        """Raise ValueError if the tensor is not as agreed."""
        if tuple(tensor.shape) != self.shape or tensor.dtype != self.dtype:
            raise ValueError(
                f"the channel's contract expects {self.dtype} {list(self.shape)},"
                f" got {tensor.dtype} {list(tensor.shape)}"
            )
