"""What all modules of a run have in common."""

from dataclasses import dataclass, field

import torch

from pipeline_local.config import ReconcileConfig
from pipeline_local.layout import Layout
from pipeline_local.learning.crossing import Crossing
from pipeline_local.learning.guard import OnNan


@dataclass(frozen=True)
class Rules:
    """What all modules of a run have in common."""

    seed: int = 0
    reconcile: ReconcileConfig = field(default_factory=ReconcileConfig)
    label_smoothing: float = 0.0
    clip: float | None = None
    on_nan: OnNan = "fail"
    layout: Layout = "NCHW"
    """Of activations between modules."""
    boundary: torch.dtype = torch.float32
    """Dtype of activations and signals where modules meet; bfloat16 also turns on autocast."""
    wire: torch.dtype | None = None
    """Dtype to which they are rounded on their way; None: they are not."""

    @property
    def crossing(self) -> Crossing:
        """How they are rounded."""
        return Crossing(self.boundary, self.wire)
