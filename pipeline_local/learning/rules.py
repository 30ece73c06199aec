"""The settings that all modules of a run share."""

from dataclasses import dataclass, field

from pipeline_local.config import DistillConfig, ReconcileConfig
from pipeline_local.engines.guard import OnNan
from pipeline_local.engines.settings import EngineSettings
from pipeline_local.layout import Layout
from pipeline_local.learning.lag_plan import LagPlan
from pipeline_local.learning.tasks import Classification, Task
from pipeline_local.learning.wire_format import WireFormat


@dataclass(frozen=True)
class Rules:
    """The settings that all modules of a run share.

    Example:
        >>> rules = Rules(seed=1, clip=1.0, layout="NC")
        >>> rules.task.metric
        'accuracy'
    """

    seed: int = 0
    fraction: float = 1.0
    """The part of each batch that auxiliary heads see in training."""
    reconcile: ReconcileConfig = field(default_factory=ReconcileConfig)
    distill: DistillConfig = field(default_factory=DistillConfig)
    task: Task = field(default_factory=lambda: Classification(1))
    """Loss and score of the heads. The default accepts any number of classes."""
    clip: float | None = None
    on_nan: OnNan = "fail"
    engine: EngineSettings = field(default_factory=EngineSettings)
    """Who steps the optimizers, and where their state is."""
    layout: Layout = "NCHW"
    """Meaning of the axes of activations between modules."""
    wire_format: WireFormat = field(default_factory=WireFormat)
    """Dtypes of activations and signals inside modules (bfloat16 also turns on autocast) and in
    messages between them."""
    lag: LagPlan = field(default_factory=LagPlan)
    """What flows upstream, and when."""
