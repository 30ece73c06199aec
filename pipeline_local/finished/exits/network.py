"""The network up to an exit, as one model without anything that only training needs."""

from collections.abc import Sequence

from torch import Tensor, nn

from pipeline_local.errors import UserError
from pipeline_local.learning.inference import Inference
from pipeline_local.learning.information import parts


class ExitNetwork(nn.Module):
    """Modules 1 to k of a run with head k: inputs [B, ...] of the first module -> logits [B, ...].

    It rounds between modules as the run does (`parallel.wire_dtype`). So on one machine its outputs
    are those of the run's own head k, bit for bit, except where `precision` is bfloat16: it
    computes in the dtype of the weights, float32.

    Args:
        modules: the first k, in order. They share their weights with it, and are put into
            evaluation mode.

    Attributes:
        bodies: of the modules, in order; each is a sequence of blocks.
        head: that of the last one.
    """

    def __init__(self, modules: Sequence[Inference]) -> None:
        super().__init__()
        self.bodies = nn.ModuleList(module.body for module in modules)
        self.head = parts(modules[-1].head)[0]
        self._wire_format = modules[-1].rules.wire_format
        self.eval()

    def forward(self, x: Tensor) -> Tensor:
        """Map inputs [B, ...] to outputs [B, ...]."""
        for index, body in enumerate(self.bodies):
            if index > 0:
                x = self._wire_format.widen(self._wire_format.round_activations(x)).to(x.dtype)
            x = self._wire_format.laid_out(body(x))
        outputs: Tensor = self.head(x)
        return outputs


def check(option: str, exit: int | None, count: int) -> int:
    """Return the number of the module, from 1, whose head is the exit; None stands for the last.

    Raises:
        UserError: there is no such module.
    """
    if exit is not None and not 1 <= exit <= count:
        raise UserError(f"{option}: must be a module from 1 to {count}, got {exit}")
    return count if exit is None else exit
