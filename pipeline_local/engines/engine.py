"""What steps a module: the torch engine, or DeepSpeed's."""

from collections.abc import Mapping, Sequence
from typing import Protocol

import torch
from torch import Tensor, nn

from pipeline_local.engines.deepspeed import DeepSpeedEngine
from pipeline_local.engines.gradients import Gradient
from pipeline_local.engines.guard import Guard
from pipeline_local.engines.optimizer import MakeOptimizer
from pipeline_local.engines.replicas import Replicas
from pipeline_local.engines.settings import EngineSettings
from pipeline_local.engines.torch import TorchEngine


class Engine(Protocol):
    """Gradients in, new weights out, for one module and all its replicas."""

    optimizer: torch.optim.Optimizer
    """What updates this replica's part of the weights."""

    @property
    def scale(self) -> float:
        """What a loss is multiplied by before it is differentiated for `add`."""
        ...

    @property
    def gradients(self) -> Sequence[Gradient]:
        """Those that the next step applies, as far as this process has them."""
        ...

    def begin(self) -> None:
        """Prepare for a step, before its first forward pass."""
        ...

    def add(self, gradients: Sequence[Gradient], microbatches: int) -> None:
        """Add one microbatch's gradients, one per parameter, to the mean over all of them."""
        ...

    def reduce(self, measured: Sequence[Tensor], statistics: Sequence[Tensor]) -> None:
        """Begin to add up gradients, and what was measured, and to average statistics."""
        ...

    def step(self, lr: float, loss: Tensor, number: int) -> dict[str, Tensor]:
        """Run one optimizer step; return metrics by name."""
        ...

    def tensors(self) -> dict[str, Tensor]:
        """Return the optimizer's state by name, on the first replica; all call it together."""
        ...

    def weights(self) -> Mapping[nn.Parameter, Tensor]:
        """Return the exact weights of parameters that are rounded copies; all replicas call it
        together."""
        ...

    def load(self, named: Mapping[str, Tensor]) -> None:
        """Restore the optimizer's state from the result of `tensors` of any engine."""
        ...


def engine_of(
    params: list[nn.Parameter],
    make: MakeOptimizer,
    guard: Guard,
    replicas: Replicas,
    clip: float | None,
    settings: EngineSettings,
) -> Engine:
    """Return the engine of one module.

    Args:
        params: parameters to train, in the order in which gradients come.
        make: makes the optimizer from them.
        guard: refuses updates that are not finite.
        replicas: of the module's stage.
        clip: largest gradient norm; None: any.
        settings: of the run.
    """
    if settings.deepspeed is None:
        return TorchEngine(params, make, guard, replicas, clip, settings.zero)
    return DeepSpeedEngine(params, make, guard, replicas, clip, settings)
