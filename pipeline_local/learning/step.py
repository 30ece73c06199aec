"""What every module must know of one optimizer step."""

from dataclasses import dataclass

LAG = 4
"""Steps between a message that flows upstream and its use: part of the mathematics, and long enough
for it to have arrived, as a stage runs at most about two steps ahead of the next one."""


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
    send_lagged: bool = False
    """Modules send lagged messages upstream, to be applied `LAG` steps later."""
    apply_lagged: bool = False
    """The lagged messages that were sent `LAG` steps ago are applied."""
    log: bool = False
    """The step's metrics are recorded."""
