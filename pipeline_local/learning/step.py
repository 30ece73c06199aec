"""The facts of one optimizer step that every module needs."""

from dataclasses import dataclass

LAG = 4
"""Steps between the sending of a message upstream and its use. It is part of the mathematics, and
long enough for the message to arrive, as a stage runs at most about two steps ahead of the next."""


@dataclass(frozen=True)
class Step:
    """One optimizer step, the same on every rank: a pure function of the configuration.

    Example:
        >>> steps = [Step(number, lr=0.1, log=number % 20 == 0) for number in range(40)]
        >>> [step.number for step in steps if step.log]
        [0, 20]
    """

    number: int
    """Counted from 0."""
    lr: float
    """Learning rate of this step."""
    microbatches: int = 1
    """Number of parts of the batch; their gradients are averaged."""
    reconcile: bool = False
    """Whether the gradient of the discord is added to the local one."""
    compare: bool = False
    """Whether signals are sent, so that input gradients can be compared with them. `reconcile`
    implies it; it is also set on logged steps, for the metrics."""
    log: bool = False
    """Whether the metrics of the step are recorded."""
