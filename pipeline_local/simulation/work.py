"""What the stages of a simulated run have to do."""

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class ModuleWork:
    """Seconds of a module's acts for one microbatch.

    Attributes:
        forward: act 1.
        signal: act 2.
        learn: act 3.
        added: to act 3 on steps that reconcile.
        update: of its optimizer, once per step.
        gradients: bytes of all gradients, the head's included, for replicas.
    """

    forward: float
    signal: float
    learn: float
    added: float = 0.0
    update: float = 0.0
    gradients: float = 0.0


@dataclass(frozen=True)
class StageWork:
    """What one stage has to do.

    Attributes:
        modules: for local learning.
        messages: the same, bytes of the activations of one microbatch as they cross to the next
            stage; signals and feedback take as many.
        forward: for backpropagation, of one microbatch.
        backward: the same.
        update: the same, once per step.
        activations: the same, bytes that cross to the next stage, of one microbatch; gradients
            take as many.
        gradients: the same, bytes of all gradients, the classifier's included, for replicas.
    """

    modules: tuple[ModuleWork, ...]
    messages: float
    forward: float
    backward: float
    update: float
    activations: float
    gradients: float


def stretched(stages: Sequence[StageWork], count: int) -> tuple[StageWork, ...]:
    """As many stages as asked for, each with the mean work of those there are."""
    number = len(stages)
    modules = [module for stage in stages for module in stage.modules]

    def mean(values: Sequence[float]) -> float:
        return sum(values) / number

    work = ModuleWork(
        forward=mean([module.forward for module in modules]),
        signal=mean([module.signal for module in modules]),
        learn=mean([module.learn for module in modules]),
        added=mean([module.added for module in modules]),
        update=mean([module.update for module in modules]),
        gradients=mean([module.gradients for module in modules]),
    )
    one = StageWork(
        modules=(work,),
        messages=max(stage.messages for stage in stages),
        forward=mean([stage.forward for stage in stages]),
        backward=mean([stage.backward for stage in stages]),
        update=mean([stage.update for stage in stages]),
        activations=max(stage.activations for stage in stages),
        gradients=mean([stage.gradients for stage in stages]),
    )
    return (one,) * count
