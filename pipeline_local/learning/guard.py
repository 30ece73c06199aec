"""What keeps numbers that are not finite out of a module's weights."""

from collections.abc import Callable, Iterator
from typing import Literal

import torch
from torch import Tensor, nn

from pipeline_local.errors import UserError

OnNan = Literal["fail", "skip"]


class Guard:
    """Refuses updates of one module whose loss or gradient is not finite.

    Judged on the device, where a refused update changes neither weights nor optimizer state, with
    either policy; nobody waits for the verdict until `verify` asks for it. With `skip`, the
    statistics of batch norms are put back too, as they have seen the same numbers.

    Args:
        module: guarded; its number from 1 is told.
        number: of the module, from 1.
        policy: fail: `verify` raises once an update was refused; skip: it is only counted.
        remedy: what else may help, told first.
    """

    def __init__(self, module: nn.Module, number: int, policy: OnNan, remedy: str = "") -> None:
        self._module = module
        self._number = number
        self._policy = policy
        self.remedy = remedy
        self.is_refused: Callable[[Tensor], bool] = bool
        """Reads a verdict for an optimizer that cannot on the device."""
        self._before: list[Tensor] = []
        self._first_refused = torch.tensor(0)
        self.skipped = torch.tensor(0.0)
        """Updates refused so far, on the device; since the start of this process."""

    def begin(self) -> None:
        """Before the first forward pass of a step: remember what that may spoil."""
        if self._policy == "skip":
            self._before = [buffer.clone() for buffer in self._module.buffers()]

    @torch.no_grad()
    def step(self, optimizer: torch.optim.Optimizer, loss: Tensor, number: int) -> None:
        """One step of the optimizer, unless the loss or a gradient is not finite.

        Args:
            optimizer: with gradients in its parameters. A fused one is told on the device; any
                other costs a wait for it.
            loss: of this step, a scalar.
            number: of this step, from 0.
        """
        refused = _not_finite(loss, list(_gradients(optimizer)))
        if getattr(optimizer, "_step_supports_amp_scaling", False):
            optimizer.found_inf = refused  # type: ignore[attr-defined]
            optimizer.step()
        elif not self.is_refused(refused):
            optimizer.step()
        self._count(refused, number)
        if self._before:
            for buffer, old in zip(self._module.buffers(), self._before, strict=True):
                buffer.copy_(torch.where(refused > 0, old, buffer))
            self._before = []

    def verify(self) -> None:
        """Wait for the device, and stop if the policy says so.

        Raises:
            UserError: with `fail`, an update was refused; names the module and the first such step.
        """
        if self._policy == "fail" and (step := int(self._first_refused)):
            raise UserError(
                f"module {self._number}: the loss or a gradient is not finite at step {step};"
                f" {self.remedy}lower optimizer.lr, raise optimizer.warmup, set optimizer.clip, or"
                f" pass over such steps with train.on_nan=skip"
            )

    def verify_weights(self, step: int) -> None:
        """Refuse to keep weights that mean nothing: a finite gradient may be too long a step.

        Raises:
            UserError: a parameter is not finite, or a buffer is not a number, with either policy.
        """
        finite = [p.isfinite().all() for p in self._module.parameters()]
        finite += [~b.isnan().any() for b in self._module.buffers()]
        if finite and not torch.stack(finite).all():
            raise UserError(
                f"module {self._number}: a weight is not finite after step {step}; lower"
                f" optimizer.lr, raise optimizer.warmup or set optimizer.clip"
            )

    def _count(self, refused: Tensor, number: int) -> None:
        first = self._first_refused.to(refused.device)
        self._first_refused = torch.where((first == 0) & (refused > 0), number + 1, first)
        self.skipped = self.skipped.to(refused.device) + refused


def _gradients(optimizer: torch.optim.Optimizer) -> Iterator[Tensor]:
    for group in optimizer.param_groups:
        yield from (p.grad for p in group["params"] if p.grad is not None)


def _not_finite(loss: Tensor, gradients: list[Tensor]) -> Tensor:
    """0 or 1, float32: what a fused optimizer asks for. One pass over the gradients."""
    found = (~loss.isfinite()).float()
    one = torch.ones((), device=loss.device)
    torch._amp_foreach_non_finite_check_and_unscale_(gradients, found, one)
    return found
