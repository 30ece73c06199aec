"""The format of tensors sent between modules: rounded by the sender, widened by the receiver.

It applies at every boundary between modules, inside a stage as between processes, as rounding is
part of the mathematics and placement is not. Only messages are rounded: a module's own head sees
the unrounded output of its body. The format includes strides, as kernels sum in an order that
depends on them: the input of a module has the same strides on every placement.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from pipeline_local.config import Config
from pipeline_local.learning.spec import Spec

_INSIDE = {
    "float32": torch.float32,
    "float64": torch.float64,
    "bfloat16": torch.bfloat16,
    "float16": torch.float32,  # what gradients at boundaries need
}
_NARROW = {None: None, "bfloat16": torch.bfloat16, "float16": torch.float16}


@dataclass(frozen=True)
class WireFormat:
    """The dtypes and memory layout of tensors inside modules and in messages between them.

    Labels are sent unchanged.

    Attributes:
        inside: dtype of activations and gradients inside modules.
        narrow: dtype of activations in messages; None: as inside.
        channels_last: whether maps [B, C, H, W] have the memory layout [B, H, W, C], inside modules
            and in messages.
        half: whether networks compute in float16, by autocast.
    """

    inside: torch.dtype = torch.float32
    narrow: torch.dtype | None = None
    channels_last: bool = False
    half: bool = False

    @classmethod
    def of(cls, config: Config) -> "WireFormat":
        """Return the format set by `precision`, `parallel.wire_dtype` and `channels_last`."""
        narrow = _NARROW[config.parallel.wire_dtype]
        half = config.precision == "float16"
        return cls(_INSIDE[config.precision], narrow, config.channels_last, half)

    @property
    def networks(self) -> torch.dtype:
        """The dtype that networks compute in: what `autocast` gets."""
        return torch.float16 if self.half else self.inside

    @property
    def activations(self) -> torch.dtype:
        """The dtype of activations in messages."""
        return self.narrow or self.inside

    @property
    def gradients(self) -> torch.dtype:
        """The dtype of signals and input gradients in messages.

        It is bfloat16 also where activations are sent as float16: gradients are mean-reduced over
        the batch, and float16 has no positive number below 6e-8.
        """
        return torch.bfloat16 if self.narrow else self.inside

    @property
    def remedy(self) -> str:
        """The advice of an error message about numbers that are not finite; "" if none."""
        if self.narrow != torch.float16:
            return ""
        return "set parallel.wire_dtype=bfloat16 (activations beyond 65504 overflow float16), "

    def shape(self, inside: Sequence[int]) -> tuple[int, ...]:
        """Return a shape in messages: [B, H, W, C] for channels-last maps, else as inside."""
        shape = tuple(inside)
        return (shape[0], *shape[2:], shape[1]) if self._turns(len(shape)) else shape

    def laid_out(self, inside: Tensor) -> Tensor:
        """Return the tensor in the memory layout that it has inside every module."""
        turned = self._turns(inside.dim())
        return inside.contiguous(
            memory_format=torch.channels_last if turned else torch.contiguous_format
        )

    def round_activations(self, y: Tensor) -> Tensor:
        """Round activations to the dtype of messages.

        An overflow of float16 becomes NaN, not infinity: a bounded activation function would take
        infinity as a valid input, and train on it.
        """
        narrow = y.to(self.activations)
        if self.narrow == torch.float16:
            narrow = narrow.masked_fill(narrow.isinf(), float("nan"))
        return self._on_the_way(narrow)

    def round_gradient(self, gradient: Tensor) -> Tensor:
        """Round a signal or an input gradient to the dtype of messages."""
        return self._on_the_way(gradient.to(self.gradients))

    def lagged(self, inside: Spec) -> Spec:
        """A tensor of a lagged message on the way; what is no floating point stays as it is."""
        dtype = self.gradients if inside.dtype.is_floating_point else inside.dtype
        return Spec(self.shape(inside.shape), dtype)

    def round_lagged(self, tensor: Tensor) -> Tensor:
        """A tensor of a lagged message, for the way: floating point gets the range of gradients."""
        floating = tensor.is_floating_point()
        return self.round_gradient(tensor) if floating else self._on_the_way(tensor)

    def widen_lagged(self, arrived: Tensor) -> Tensor:
        """The inverse of `round_lagged`, as far as there is one."""
        if arrived.is_floating_point():
            return self.widen(arrived)
        return arrived.permute(0, 3, 1, 2) if self._turns(arrived.dim()) else arrived

    def widen(self, arrived: Tensor) -> Tensor:
        """Convert a message to the dtype inside modules, without loss."""
        wide = arrived.to(self.inside)
        return wide.permute(0, 3, 1, 2) if self._turns(wide.dim()) else wide

    def _turns(self, dimensions: int) -> bool:
        return self.channels_last and dimensions == 4

    def _on_the_way(self, narrow: Tensor) -> Tensor:
        """Make a message contiguous: with channels last in memory, they become the last axis."""
        turned = narrow.permute(0, 2, 3, 1) if self._turns(narrow.dim()) else narrow
        return turned.contiguous()
