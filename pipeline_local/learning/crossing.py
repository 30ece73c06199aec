"""How numbers cross a boundary between modules: rounded by the sender, widened by the receiver.

They do so at every boundary, inside a stage as between processes: what is rounded is part of the
mathematics, and where a module runs is not. Only messages are rounded: a module's own head, and
all that it computes, sees what its body gave.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from pipeline_local.config import Config

_INSIDE = {"float32": torch.float32, "float64": torch.float64, "bfloat16": torch.bfloat16}
_WIRE = {None: None, "bfloat16": torch.bfloat16, "float16": torch.float16}


@dataclass(frozen=True)
class Crossing:
    """Dtypes on both sides of a boundary and on the way. Labels cross as they are.

    Attributes:
        inside: of activations and gradients in the modules.
        wire: of activations on the way; None: as inside.
    """

    inside: torch.dtype = torch.float32
    wire: torch.dtype | None = None

    @classmethod
    def of(cls, config: Config) -> "Crossing":
        """As configured by `precision` and `parallel.wire_dtype`."""
        return cls(_INSIDE[config.precision], _WIRE[config.parallel.wire_dtype])

    @property
    def activations(self) -> torch.dtype:
        """Of activations on the way."""
        return self.wire or self.inside

    @property
    def gradients(self) -> torch.dtype:
        """Of signals and input gradients on the way.

        bfloat16 for either wire: they are mean-reduced over the batch, and float16 ends at 6e-8.
        """
        return torch.bfloat16 if self.wire else self.inside

    @property
    def remedy(self) -> str:
        """What to do first about numbers that are not finite, for a message; "" if nothing."""
        if self.wire != torch.float16:
            return ""
        return "set parallel.wire_dtype=bfloat16 (activations beyond 65504 overflow float16), "

    def round_activations(self, y: Tensor) -> Tensor:
        """To the nearest number of the wire, for the way downstream.

        What overflows float16 becomes no number at all: a bounded activation function would take
        infinity for an input like any other, and train on it.
        """
        narrow = y.to(self.activations)
        if self.wire == torch.float16:
            narrow = narrow.masked_fill(narrow.isinf(), float("nan"))
        return narrow

    def round_gradient(self, gradient: Tensor) -> Tensor:
        """The same of a signal or an input gradient, for either way."""
        return gradient.to(self.gradients)

    def widen(self, arrived: Tensor) -> Tensor:
        """Exactly: every number of the wire is one inside."""
        return arrived.to(self.inside)
