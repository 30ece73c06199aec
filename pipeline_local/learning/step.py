"""What every module must know of one optimizer step."""

from dataclasses import dataclass


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
    strength: float = 1.0
    """Of reconciliation, relative to `reconcile.weight`."""
    answer: bool = False
    """Input gradients are sent back upstream, to be heeded some steps later."""
    heed: bool = False
    """Heads learn from input gradients that were sent back earlier."""
    log: bool = False
    """The step's metrics are recorded."""
