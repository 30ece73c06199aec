"""The scale of a module's loss with float16: the number in force, and DeepSpeed's rule for it."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

_NAME = "loss_scale"
_STATE = ("cur_scale", "cur_iter", "last_overflow_iter", "cur_hysteresis")


class LossScale:
    """The scale of one module's loss, by DeepSpeed's rule.

    Args:
        optimizer: DeepSpeed's, of that module; it unscales gradients.
    """

    def __init__(self, optimizer: Any) -> None:  # noqa: ANN401 (DeepSpeed is imported in functions)
        self._optimizer = optimizer
        self._rule = optimizer.loss_scaler
        self._rule.raise_error_at_min_scale = False  # the guard names the module and the step
        self.proceed()

    @property
    def value(self) -> float:
        """The scale of this step."""
        return float(self._optimizer.loss_scale)

    @property
    def falls(self) -> bool:
        """Whether gradients that are too large make it smaller."""
        return bool(self._rule.dynamic and self.value > self._rule.min_scale)

    @property
    def remedy(self) -> str:
        """The advice of an error message about numbers that are not finite."""
        if self._rule.dynamic:
            return "use bfloat16 (float16 ends at 65504), "
        return "lower deepspeed.fp16.loss_scale or leave it out, "

    def proceed(self) -> None:
        """Put in force what the rule says, for one step.

        By itself, DeepSpeed would divide gradients by the next step's scale.
        """
        self._optimizer.override_loss_scale(self._rule.cur_scale)

    def tensors(self) -> dict[str, Tensor]:
        """Return the rule's state, if it has one."""
        if not self._rule.dynamic:
            return {}
        state = [float(getattr(self._rule, name)) for name in _STATE]
        return {_NAME: torch.tensor(state, dtype=torch.float64)}

    def load(self, state: Tensor) -> None:
        """Restore the rule's state; a scale that does not change has none."""
        if self._rule.dynamic:
            scale, *counts = state.tolist()
            for name, value in zip(_STATE, [scale, *map(int, counts)], strict=True):
                setattr(self._rule, name, value)
            self.proceed()


def parted(named: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], Tensor | None]:
    """Return the state of an optimizer, and that of a scale's rule if it is among it."""
    rest = dict(named)
    return rest, rest.pop(_NAME, None)
