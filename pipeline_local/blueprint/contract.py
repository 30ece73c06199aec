"""The contract of an edge: shapes and dtypes of every message, known to both ends beforehand."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from pipeline_local.blueprint.run_plan import Evaluate, RunPlan
from pipeline_local.learning.lag_plan import LaggedContent
from pipeline_local.learning.spec import Spec as Spec  # public here
from pipeline_local.learning.step import Step

Dealt = tuple[int, tuple[Spec, ...]]
"""A message: the microbatch that it belongs to, and the specs of its tensors."""


@dataclass(frozen=True)
class Contract:
    """All tensors that one edge may carry.

    Attributes:
        activations: the activations of a training microbatch.
        gradients: the signal of a training microbatch, shaped like the activations.
        labels: the labels of a training microbatch.
        test_activations: the activations of a test microbatch.
        test_labels: the labels of a test microbatch.
        test_ensemble: the sum of the outputs of all upstream heads, for a test microbatch.
        receiver: the module (from 0) that is upstream, and receives lagged messages.
        lagged: the parts of lagged messages, which flow upstream, as the mathematics chooses them.
    """

    activations: Spec
    gradients: Spec
    labels: Spec
    test_activations: Spec
    test_labels: Spec
    test_ensemble: Spec
    receiver: int = 0
    lagged: Mapping[LaggedContent, tuple[Spec, ...]] = field(default_factory=dict)

    def traffic(self, run_plan: RunPlan, start: int) -> Iterator[Dealt]:
        """Yields every message of a run from step `start` on, in order."""
        parts = range(run_plan.config.train.microbatches)
        for action in run_plan.actions(start):
            if isinstance(action, Step):
                for microbatch in parts:
                    yield microbatch, (self.activations, self.labels)
                    if action.compare:
                        yield microbatch, (self.gradients,)
            elif isinstance(action, Evaluate):
                for _ in run_plan.test_batches:
                    for microbatch in parts:
                        tested = self.test_activations, self.test_labels, self.test_ensemble
                        yield microbatch, tested

    def lagged_traffic(self, run_plan: RunPlan, start: int) -> Iterator[Dealt]:
        """Yields every lagged message, which flows upstream, in the order of use."""
        for action in run_plan.actions(start):
            if isinstance(action, Step):
                yield from self.lagged_messages(run_plan, action)

    def lagged_messages(self, run_plan: RunPlan, step: Step) -> Iterator[Dealt]:
        """Yields every lagged message that is applied in this step, in order."""
        lag, count = run_plan.lag, step.microbatches
        for microbatch in range(count):
            if contents := lag.applied(self.receiver, step.number, microbatch, count):
                specs = tuple(spec for content in contents for spec in self.lagged[content])
                yield microbatch, specs
