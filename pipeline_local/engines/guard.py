"""Keeps numbers that are not finite out of a module's weights."""

from collections.abc import Callable, Iterator
from typing import Literal

import torch
from torch import Tensor, nn

from pipeline_local.errors import UserError

OnNan = Literal["fail", "skip"]


class Guard:
    """Refuses updates of one module whose loss or gradient is not finite.

    The check runs on the device, and a refused update changes neither weights nor optimizer state,
    with either policy. The host waits for the result only in `verify`. With `skip`, the statistics
    of batch norms are restored too, as they have seen the same numbers.

    Args:
        module: the module to guard.
        number: number of the module, from 1, for messages.
        policy: fail: `verify` raises once an update was refused; skip: it is only counted.
        remedy: advice that the error message gives first.
    """

    def __init__(self, module: nn.Module, number: int, policy: OnNan, remedy: str = "") -> None:
        self._module = module
        self._number = number
        self._policy = policy
        self.remedy = remedy
        self.is_refused: Callable[[Tensor], bool] = bool
        """Reads a verdict where the optimizer does not."""
        self._before: dict[str, Tensor] = {}
        self._first_refused = torch.tensor(0)
        self.skipped = torch.tensor(0.0)
        """Number of updates refused since the start of this process; a scalar on the device."""

    def begin(self) -> None:
        """Save buffers that the step may spoil; called before its first forward pass."""
        if self._policy == "skip":
            named = self._module.named_buffers()
            self._before = {name: buffer.clone() for name, buffer in named}

    @torch.no_grad()
    def step(self, optimizer: torch.optim.Optimizer, loss: Tensor, number: int) -> None:
        """Run one step of the optimizer, unless the loss or a gradient is not finite.

        Args:
            optimizer: the optimizer. On a GPU a fused one takes the result of the check there; for
                any other, the host waits for it. On a CPU there is nothing to wait for.
            loss: loss of this step, a scalar.
            number: number of this step, from 0.
        """
        refused = _not_finite(loss, list(_gradients(optimizer)))
        fused = getattr(optimizer, "_step_supports_amp_scaling", False)
        if fused and refused.device.type != "cpu":
            optimizer.found_inf = refused  # type: ignore[attr-defined]
            optimizer.step()
            self._count(refused, number)
        elif self.is_refused(refused):
            self._count(refused, number)
        else:
            optimizer.step()
        self._restore(refused)

    @torch.no_grad()
    def note(self, refused: Tensor, number: int, cured: bool = False) -> None:
        """Take note of a step of an engine that refuses updates by itself.

        Args:
            refused: 0 or 1, a scalar in float32: whether it has refused this one.
            number: number of this step, from 0.
            cured: whether the engine does what is needed against it; then it is counted, and is no
                failure.
        """
        if cured:
            self.skipped = self.skipped.to(refused.device) + refused
        else:
            self._count(refused, number)
        self._restore(refused)

    def verify(self) -> None:
        """Wait for the device, and raise if the policy is `fail` and an update was refused.

        Raises:
            UserError: an update was refused; the message names the module and the first such step.
        """
        if self._policy == "fail" and (step := int(self._first_refused)):
            raise UserError(
                f"module {self._number}: the loss or a gradient is not finite at step {step};"
                f" {self.remedy}lower optimizer.lr, raise optimizer.warmup, set optimizer.clip, or"
                f" pass over such steps with train.on_nan=skip"
            )

    def verify_weights(self, step: int) -> None:
        """Check the weights before they are saved: even a finite gradient can be too large a step.

        Raises:
            UserError: a parameter is not finite, or a buffer is NaN, with either policy.
        """
        finite = [p.isfinite().all() for p in self._module.parameters()]
        finite += [~b.isnan().any() for b in self._module.buffers()]
        if finite and not torch.stack(finite).all():
            raise UserError(
                f"module {self._number}: a weight is not finite after step {step}; lower"
                f" optimizer.lr, raise optimizer.warmup or set optimizer.clip"
            )

    def _restore(self, refused: Tensor) -> None:
        if self._before:
            for name, buffer in self._module.named_buffers():
                # one that the first forward pass has registered is new, and has no earlier value
                if (old := self._before.get(name)) is not None:
                    buffer.copy_(torch.where(refused > 0, old, buffer))
            self._before = {}

    def _count(self, refused: Tensor, number: int) -> None:
        first = self._first_refused.to(refused.device)
        self._first_refused = torch.where((first == 0) & (refused > 0), number + 1, first)
        self.skipped = self.skipped.to(refused.device) + refused


def _gradients(optimizer: torch.optim.Optimizer) -> Iterator[Tensor]:
    for group in optimizer.param_groups:
        yield from (p.grad for p in group["params"] if p.grad is not None)


def _not_finite(loss: Tensor, gradients: list[Tensor]) -> Tensor:
    """0 or 1 in float32, as a fused optimizer takes it, from one pass over the gradients."""
    found = (~loss.isfinite()).float()
    one = torch.ones((), device=loss.device)
    if gradients:  # none where no parameter was used
        torch._amp_foreach_non_finite_check_and_unscale_(gradients, found, one)
    return found
