"""The work of the stages of a simulated run: seconds of compute and bytes of messages."""

from collections.abc import Sequence
from dataclasses import dataclass, fields


@dataclass(frozen=True)
class ModuleWork:
    """Seconds of a module's acts for one microbatch.

    Attributes:
        forward: seconds of act 1.
        signal: seconds of act 2.
        learn: seconds of act 3, without reconciliation, distillation and update.
        added: seconds that reconciliation adds to act 3.
        update: seconds of the optimizer, once per step.
        gradients: bytes of all gradients, head included, that replicas all-reduce.
        distilled: seconds that distillation adds to act 3.
    """

    forward: float
    signal: float
    learn: float
    added: float = 0.0
    update: float = 0.0
    gradients: float = 0.0
    distilled: float = 0.0


@dataclass(frozen=True)
class StageWork:
    """The work of one stage: the first two attributes for local learning, the others for
    backpropagation.

    Attributes:
        modules: the work of its modules.
        messages: bytes of one microbatch's activations as sent to the next stage; signals and
            feedback are as large.
        forward: seconds of the forward pass of one microbatch.
        backward: seconds of the backward pass of one microbatch.
        update: seconds of the optimizer, once per step.
        activations: bytes of one microbatch's activations as sent to the next stage; their
            gradients are as large.
        gradients: bytes of all gradients, classifier included, that replicas all-reduce.
        copies: bytes of the parameters that it publishes to the stage upstream.
        outputs: bytes of the outputs of one microbatch that it sends upstream for distillation.
    """

    modules: tuple[ModuleWork, ...]
    messages: float
    forward: float
    backward: float
    update: float
    activations: float
    gradients: float
    copies: float = 0.0
    outputs: float = 0.0


def stretched(stages: Sequence[StageWork], count: int) -> tuple[StageWork, ...]:
    """Return `count` stages, each with the mean work and the largest messages of those given."""

    def mean(items: Sequence[ModuleWork] | Sequence[StageWork], *names: str) -> dict[str, float]:
        return {name: sum(getattr(item, name) for item in items) / len(stages) for name in names}

    modules = [module for stage in stages for module in stage.modules]
    one = StageWork(
        modules=(ModuleWork(**mean(modules, *(field.name for field in fields(ModuleWork)))),),
        messages=max(stage.messages for stage in stages),
        activations=max(stage.activations for stage in stages),
        copies=max(stage.copies for stage in stages),
        outputs=max(stage.outputs for stage in stages),
        **mean(stages, "forward", "backward", "update", "gradients"),
    )
    return (one,) * count
