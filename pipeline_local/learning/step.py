"""What every module must know of one optimizer step."""

from dataclasses import dataclass

FEEDBACK_DELAY = 4
"""Steps between an input gradient and the head that heeds it: part of the mathematics, and long
enough for it to have arrived, as a stage runs at most about two steps ahead of the next one."""


@dataclass(frozen=True)
class Step:
    """One optimizer step, the same on every rank: a pure function of the configuration."""

    number: int
    """Counted from 0."""
    lr: float
    """Learning rate of this step."""
    microbatches: int = 1
    """Parts the batch travels in; their gradients are averaged."""
    reconcile: bool = False
    """The discord's gradient is added to the local one."""
    compare: bool = False
    """Signals are sent, so that input gradients can be compared with them. Implied by
    `reconcile`; also so on logged steps, for the metrics."""
    feedback: bool = False
    """Input gradients go back upstream, to be heeded `FEEDBACK_DELAY` steps later."""
    heed: bool = False
    """Heads learn from the input gradients that went back `FEEDBACK_DELAY` steps ago."""
    log: bool = False
    """The step's metrics are recorded."""
