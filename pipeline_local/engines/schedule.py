"""Learning-rate schedules: factors of `optimizer.lr`, pure functions of the step."""

import math
from collections.abc import Callable

from pipeline_local.config import OptimizerConfig
from pipeline_local.user_input.registry import Registry

SCHEDULES: Registry[Callable[..., float]] = Registry(
    "optimizer.schedule", kind="schedule", given=("step", "num_steps")
)
"""All schedules, by name (`optimizer.schedule`); steps count from 0, after the warm-up."""


@SCHEDULES.add("cosine")
def cosine(step: int, num_steps: int) -> float:
    """Half a cosine that would reach zero at the step after the last."""
    return (1 + math.cos(math.pi * (step / num_steps))) / 2


@SCHEDULES.add("linear")
def linear(step: int, num_steps: int) -> float:
    """A line that would reach zero at the step after the last."""
    return 1 - step / num_steps


@SCHEDULES.add("constant")
def constant(step: int, num_steps: int) -> float:
    """The same rate for all steps."""
    return 1.0


@SCHEDULES.add("wsd")
def wsd(step: int, num_steps: int) -> float:
    """Warm-up, stable, decay (Hu et al., 2024): constant, then linear to zero in the last fifth."""
    return min(1.0, (num_steps - step) / (0.2 * num_steps))


def learning_rate(config: OptimizerConfig, step: int, num_steps: int) -> float:
    """The rate of a step: a linear warm-up, then the schedule.

    Raises:
        UserError: a user's own schedule fails, or gives no number.
    """
    warmup = round(config.warmup * num_steps)
    if step < warmup:
        return config.lr * (step + 1) / warmup
    given = {"step": step - warmup, "num_steps": num_steps - warmup}
    return config.lr * float(SCHEDULES.make(config.schedule, (float, int), given, {}))
