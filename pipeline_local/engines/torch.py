"""The torch engine: gradients in, new weights out, in this process and without waiting for it.

A module computes gradients and knows nothing of what is done with them. An engine adds up those of
all microbatches, clips them, refuses what is not finite, and steps the optimizer.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import partial

import torch
from torch import Tensor, nn

from pipeline_local.engines import gradients as sums
from pipeline_local.engines import optimizer as optimizers
from pipeline_local.engines.gradients import Gradient
from pipeline_local.engines.guard import Guard
from pipeline_local.engines.loss_scale import parted
from pipeline_local.engines.optimizer import MakeOptimizer, laid_out_as
from pipeline_local.engines.replicas import Replicas, replace
from pipeline_local.engines.sharded import ShardedOptimizer, gathered


class TorchEngine:
    """The engine of one module: one optimizer, one guard.

    Args:
        params: parameters to train, in the order in which gradients come.
        make: makes the optimizer from them.
        guard: refuses updates that are not finite.
        replicas: of the module's stage.
        clip: largest gradient norm; None: any.
        zero: stage of ZeRO; 1: each replica keeps the optimizer's state of some parameters.
    """

    scale = 1.0
    """What a loss is multiplied by before it is differentiated."""

    def __init__(
        self,
        params: list[nn.Parameter],
        make: MakeOptimizer,
        guard: Guard,
        replicas: Replicas | None = None,
        clip: float | None = None,
        zero: int = 0,
    ) -> None:
        self._params = params
        self._guard = guard
        self._clip = clip
        self.replicas = replicas or Replicas()
        self._sum: list[Gradient] = []
        self._reduced: Callable[[], None] | None = None
        self.optimizer = make(params)
        if zero and self.replicas.size > 1:
            self.optimizer = ShardedOptimizer(self.optimizer, self.replicas)
        self._rates = optimizers.rates(self.optimizer)
        self._made = optimizers.numbers(self.optimizer)

    @property
    def gradients(self) -> Sequence[Gradient]:
        """The gradients that the next step applies, one per parameter; empty after a step.

        None where the loss does not depend on the parameter: then the step leaves it alone.
        """
        return self._sum

    def begin(self) -> None:
        """Prepare for a step, before its first forward pass."""
        self._guard.begin()

    def add(self, gradients: Sequence[Gradient], microbatches: int) -> None:
        """Add one microbatch's gradients, one per parameter, to the mean over all of them."""
        if microbatches > 1:  # the sum is no one else's: not what autograd gave
            sums.accumulate(self._sum, gradients, 1 / microbatches)
        elif self._sum:
            self._sum = sums.plus(self._sum, gradients)
        else:
            self._sum = list(gradients)

    def reduce(self, measured: Sequence[Tensor], statistics: Sequence[Tensor]) -> None:
        """Begin to add up the gradients of several replicas; `step` waits for it.

        Args:
            measured: more tensors that are replaced by their sums.
            statistics: tensors that are replaced by their means.
        """
        # a replica without a gradient sends zeros, as all have to send alike
        pairs = list(zip(self._params, self._sum, strict=True))
        sent = [torch.zeros_like(p) if g is None else g for p, g in pairs]
        has = torch.tensor([g is not None for _, g in pairs], dtype=self._params[0].dtype)
        has = has.to(self._params[0].device, non_blocking=True)
        shares = map(self.replicas.share, statistics)
        wait = self.replicas.sum([*sent, has, *measured, *shares])
        lacks_some = any(g is None for g in self._sum)
        self._sum = []
        self._reduced = partial(self._take_sums, wait, lacks_some, [*measured, *statistics])

    def _take_sums(
        self, wait: Callable[[], list[Tensor]], lacks_some: bool, others: Sequence[Tensor]
    ) -> None:
        """Take over the sums of replicas, also for parameters that only others have reached.

        Args:
            wait: waits for the sums.
            lacks_some: whether this replica lacks a gradient; then, and only then, the host waits
                for the number of replicas that have one.
            others: what has been summed beside gradients; replaced.
        """
        sums = wait()
        count = len(self._params)
        totals, has, found = sums[:count], sums[count], sums[count + 1 :]
        counts = has.tolist() if lacks_some else [1] * count
        self._sum = [total if known else None for total, known in zip(totals, counts, strict=True)]
        replace(others, found)

    def step(self, lr: float, loss: Tensor, number: int) -> dict[str, Tensor]:
        """Run one optimizer step with the gradients of all microbatches, if they are finite.

        Args:
            lr: learning rate; groups with a rate of their own keep its ratio.
            loss: of this step, a scalar.
            number: of this step, from 0.

        Returns:
            Metrics by name.
        """
        if self._reduced is not None:
            self._reduced()
            self._reduced = None
        for parameter, gradient in zip(self._params, self._sum, strict=True):
            parameter.grad = None if gradient is None else laid_out_as(parameter, gradient)
        self._sum = []
        metrics = {}
        if self._clip is not None:
            norm = nn.utils.clip_grad_norm_(self._params, self._clip)
            metrics["gradient_norm"] = norm.detach()
        for group, rate in zip(self.optimizer.param_groups, self._rates, strict=True):
            group["lr"] = rate * lr
        self._guard.step(self.optimizer, loss, number)
        for parameter in self._params:
            parameter.grad = None
        return metrics

    def tensors(self) -> dict[str, Tensor]:
        """Return the optimizer's state as `optimizer.tensors` does, and those `numbers` that are
        others than at first; all replicas call it together, and the first one gets all of it."""
        found = optimizers.numbers(self.optimizer).items()
        changed = {name: n for name, n in found if name not in self._made or n != self._made[name]}
        own = optimizers.tensors(self.optimizer) | changed
        if not isinstance(self.optimizer, ShardedOptimizer):
            return own
        return gathered(own, self.replicas, self._params[0].device)

    def weights(self) -> dict[nn.Parameter, Tensor]:
        """Return nothing: the parameters are the exact weights."""
        return {}

    def load(self, named: Mapping[str, Tensor]) -> None:
        """Restore the optimizer's state from the result of `tensors` of any engine."""
        state, _ = parted(named)
        optimizers.load(self.optimizer, state)
