"""How numbers cross a boundary between modules: rounded by the sender, widened by the receiver.

They do so at every boundary, inside a stage as between processes: what is rounded is part of the
mathematics, and where a module runs is not. Only messages are rounded: a module's own head, and
all that it computes, sees what its body gave. Strides are a part of it, too, as kernels add up in
an order that depends on them: what comes to a module has the same ones on every placement.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from pipeline_local.config import Config
from pipeline_local.learning.spec import Spec

_INSIDE = {"float32": torch.float32, "float64": torch.float64, "bfloat16": torch.bfloat16}
_NARROW = {None: None, "bfloat16": torch.bfloat16, "float16": torch.float16}


@dataclass(frozen=True)
class WireFormat:
    """Dtypes on both sides of a boundary and on the way. Labels cross as they are.

    Attributes:
        inside: of activations and gradients in the modules.
        narrow: of activations on the way; None: as inside.
        channels_last: maps [B, C, H, W] lie in memory as [B, H, W, C], inside and on the way.
    """

    inside: torch.dtype = torch.float32
    narrow: torch.dtype | None = None
    channels_last: bool = False

    @classmethod
    def of(cls, config: Config) -> "WireFormat":
        """As configured by `precision`, `parallel.wire_dtype` and `channels_last`."""
        narrow = _NARROW[config.parallel.wire_dtype]
        return cls(_INSIDE[config.precision], narrow, config.channels_last)

    @property
    def activations(self) -> torch.dtype:
        """Of activations on the way."""
        return self.narrow or self.inside

    @property
    def gradients(self) -> torch.dtype:
        """Of signals and input gradients on the way.

        bfloat16 for either wire: they are mean-reduced over the batch, and float16 ends at 6e-8.
        """
        return torch.bfloat16 if self.narrow else self.inside

    @property
    def remedy(self) -> str:
        """What to do first about numbers that are not finite, for a message; "" if nothing."""
        if self.narrow != torch.float16:
            return ""
        return "set parallel.wire_dtype=bfloat16 (activations beyond 65504 overflow float16), "

    def shape(self, inside: Sequence[int]) -> tuple[int, ...]:
        """Of a tensor on the way: [B, H, W, C] of maps whose channels are last, else as inside."""
        shape = tuple(inside)
        return (shape[0], *shape[2:], shape[1]) if self._turns(len(shape)) else shape

    def laid_out(self, inside: Tensor) -> Tensor:
        """The same numbers in the one order of memory that they have in every module."""
        turned = self._turns(inside.dim())
        return inside.contiguous(
            memory_format=torch.channels_last if turned else torch.contiguous_format
        )

    def round_activations(self, y: Tensor) -> Tensor:
        """To the nearest number of the wire, for the way downstream.

        What overflows float16 becomes no number at all: a bounded activation function would take
        infinity for an input like any other, and train on it.
        """
        narrow = y.to(self.activations)
        if self.narrow == torch.float16:
            narrow = narrow.masked_fill(narrow.isinf(), float("nan"))
        return self._on_the_way(narrow)

    def round_gradient(self, gradient: Tensor) -> Tensor:
        """The same of a signal or an input gradient, for either way."""
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
        """Exactly: every number of the wire is one inside."""
        wide = arrived.to(self.inside)
        return wide.permute(0, 3, 1, 2) if self._turns(wide.dim()) else wide

    def _turns(self, dimensions: int) -> bool:
        return self.channels_last and dimensions == 4

    def _on_the_way(self, narrow: Tensor) -> Tensor:
        """Contiguous, as wires want it: channels that are last in memory are the last axis."""
        turned = narrow.permute(0, 2, 3, 1) if self._turns(narrow.dim()) else narrow
        return turned.contiguous()
