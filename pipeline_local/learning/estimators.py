"""The estimators of the discord's gradient, by name, and what each of them costs."""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Annotated

from pydantic import Field
from torch import Tensor

from pipeline_local.config import ReconcileConfig
from pipeline_local.engines.gradients import Gradient
from pipeline_local.errors import UserError
from pipeline_local.learning.reconcile import (
    Distance,
    Gradients,
    Objective,
    discord,
    exact,
    finite_difference,
    plain,
)
from pipeline_local.user_input.registry import Registry
from pipeline_local.user_input.user_code import reason


@dataclass(frozen=True)
class Point:
    """Where the gradient of the discord is taken.

    Attributes:
        objective: the local loss; it draws the same dropout masks in every call.
        x: the input at which g is taken [B, ...].
        s: the target of g, of the same shape.
        params: the parameters to differentiate for.
        first: the plain gradients at x, if known; its input gradient may be overwritten.
        between: the distance of g and s.
    """

    objective: Objective
    x: Tensor
    s: Tensor
    params: Sequence[Tensor]
    first: Gradients | None = None
    between: Distance = discord


class Estimator(ABC):
    """A way to compute the gradient of the discord. Entries of `ESTIMATORS` make one.

    Attributes:
        moves: whether it takes the parameters' gradient at a moved input (`shift`), and none at the
            input itself.
        differentiates_twice: whether it needs second derivatives, which compiled modules lack.
    """

    moves = False
    differentiates_twice = False

    @abstractmethod
    def added(self, at: Point) -> list[Gradient]:
        """Return dD/d(params) there; None for a parameter that it does not depend on."""

    @abstractmethod
    def cost(self, forward: float, backward: float, again: float) -> float:
        """Return the cost that it adds to a step that reconciles, in the unit of the arguments.

        Args:
            forward: cost of a forward pass.
            backward: cost of a backward pass, recomputation included.
            again: cost of the recomputation in it (activation checkpointing).
        """

    def on_subsample(self, cost: float, fraction: float) -> float:
        """Return that cost where only a fraction of the batch is reconciled."""
        return cost * fraction


ESTIMATORS: Registry[Callable[..., Estimator]] = Registry("reconcile.estimator", kind="estimator")
"""The registry of all estimators, by name (`reconcile.estimator`)."""


@ESTIMATORS.add("exact")
class Exact(Estimator):
    """The exact gradient, by double backward."""

    differentiates_twice = True

    def added(self, at: Point) -> list[Gradient]:
        """Return dD/d(params) by `exact`."""
        return exact(at.objective, at.x, at.s, at.params, at.between)

    def cost(self, forward: float, backward: float, again: float) -> float:
        """Return the cost of another step and of the double backward, which costs one more."""
        return 2 * (forward + backward)


@ESTIMATORS.add("finite_difference")
class FiniteDifference(Estimator):
    """A finite difference, by one more forward and backward pass at a perturbed input.

    Args:
        step: norm of the perturbation over the norm of the input.
    """

    def __init__(self, *, step: Annotated[float, Field(gt=0)] = 0.03) -> None:
        self._step = step

    def added(self, at: Point) -> list[Gradient]:
        """Return dD/d(params) by `finite_difference`."""
        first = at.first or plain(at.objective, at.x, at.params)
        return finite_difference(at.objective, at.x, at.s, at.params, self._step, first, at.between)

    def cost(self, forward: float, backward: float, again: float) -> float:
        """Return the cost of one more forward and backward pass."""
        return forward + backward

    def on_subsample(self, cost: float, fraction: float) -> float:
        """Return twice the part's cost, as its plain gradient must be computed, too."""
        return cost * fraction * (2 if fraction < 1 else 1)


@ESTIMATORS.add("shift")
class Shift(FiniteDifference):
    """The plain gradient at an input moved by lambda times the discord's gradient (`shift`).

    Where only the added gradient is needed, it is computed by a finite difference.
    """

    moves = True

    def cost(self, forward: float, backward: float, again: float) -> float:
        """Return the cost of one more pass, less the weight gradients at x, which are left out."""
        return forward + (backward + again) / 2

    def on_subsample(self, cost: float, fraction: float) -> float:
        """Return the full cost: the whole batch is computed again, whichever part is moved."""
        return cost


def estimator(settings: ReconcileConfig) -> Estimator:
    """Return the configured estimator.

    Raises:
        UserError: a user's own refuses its options, or the entry makes none.
    """
    return _made(settings, ESTIMATORS.find(settings.estimator))


def second_cost(settings: ReconcileConfig, forward: float, backward: float, again: float) -> float:
    """Return what reconciliation adds to a step, as `Estimator.cost` of the configured one says it.

    Raises:
        UserError: a user's own fails, or says no such cost.
    """
    name = settings.estimator
    try:
        cost = float(estimator(settings).cost(forward, backward, again))
    except Exception as error:
        if ESTIMATORS.comes_with_us(name):
            raise
        raise UserError(
            f"reconcile.estimator: {name} cannot say its cost ({reason(error)}); fix its cost()"
        ) from error
    if not 0 <= cost < math.inf:
        raise UserError(
            f"reconcile.estimator: cost() of {name} must be a number from 0, got {cost}; fix it"
        )
    return cost


@lru_cache(maxsize=64)
def _made(settings: ReconcileConfig, _entry: Callable[..., Estimator]) -> Estimator:
    """Also by the entry: a notebook may have registered another one under the same name."""
    name = settings.estimator
    options = ESTIMATORS.options(name, settings.args, {"step": settings.step})
    try:
        made: Estimator = ESTIMATORS.make(name, Estimator, {}, options)
    except ValueError as error:
        raise UserError(
            f"reconcile.estimator: {name} refuses {options} ({error}); change reconcile.*"
        ) from None
    return made
