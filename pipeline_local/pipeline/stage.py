"""What one rank runs. READ THIS FIRST.

A stage is a chain of gradient-isolated modules. Each receives from upstream, learns in three acts,
and sends downstream. No module ever waits for a backward pass further downstream in the same step:
what flows upstream, a lagged message, is applied a fixed number of steps later. So every wait is
for something of an earlier step, or of a stage further upstream in the same step, and no wait can
be part of a cycle:

    upstream ──x,y──▶ act 1 forward ──x,y──▶ downstream
                      act 2 signal  ───s───▶ downstream
    upstream ───s───▶ act 3 learn            (overlaps the downstream neighbour's act 1)
    upstream ◀──────                         (lagged message, where the mathematics has one)

A stage does not know where its neighbours run. Its outer edges are channels between processes, its
inner ones queues; the first module's upstream is the data, the last one's downstream is nowhere.
Messages between modules are rounded alike on all edges (boundary.py).

A stage may have several ranks, its replicas. Each takes its share of the microbatches through the
same acts, and before an update all of them add up their gradients (engines/replicas.py).
"""

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial

from pipeline_local import seeds
from pipeline_local.learning.evaluation import Evaluation
from pipeline_local.learning.module import LocalModule
from pipeline_local.learning.step import Step
from pipeline_local.learning.tasks import Score
from pipeline_local.pipeline.boundary import RoundedDownstream, RoundedUpstream
from pipeline_local.pipeline.edge import Downstream, InProcessQueue, Upstream
from pipeline_local.record.messages import ACTIVATIONS, LAGGED, SIGNAL, TEST_BATCH
from pipeline_local.record.trace import Trace
from pipeline_local.side_effects.untouched import evaluating


@dataclass(frozen=True)
class Slot:
    """A module and its two edges.

    Attributes:
        upstream: the edge that the module receives from.
        module: the module.
        downstream: the edge that the module sends to.
    """

    upstream: Upstream
    module: LocalModule
    downstream: Downstream


def _slot(upstream: Upstream, module: LocalModule, downstream: Downstream) -> Slot:
    """Puts a module between edges that round; what comes from the data is not rounded."""
    wire_format = module.rules.wire_format
    rounded = RoundedUpstream(upstream, wire_format) if module.index else upstream
    return Slot(rounded, module, RoundedDownstream(downstream, wire_format))


class Stage:
    """The modules of one rank, in order, between two edges.

    Args:
        modules: consecutive modules, upstream first.
        upstream: the edge that the first one receives from.
        downstream: the edge that the last one sends to.
        trace: records the acts of the modules, and their times.

    Example:
        >>> class Data(Nowhere):
        ...     def recv(self):
        ...         return torch.rand(8, 64), torch.randint(10, (8,))
        >>> bodies, heads = [nn.Linear(64, 64) for _ in "ab"], [nn.Linear(64, 10) for _ in "ab"]
        >>> parts = enumerate(zip(bodies, heads))
        >>> modules = [LocalModule(k, *two, torch.optim.Adam, Rules()) for k, two in parts]
        >>> stage = Stage(modules, Data(), Nowhere(), Trace())
        >>> stage.train(Step(0, lr=0.01))
    """

    def __init__(
        self,
        modules: Sequence[LocalModule],
        upstream: Upstream,
        downstream: Downstream,
        trace: Trace,
    ) -> None:
        inner = [InProcessQueue() for _ in modules[1:]]
        sources: list[Upstream] = [upstream, *inner]
        targets: list[Downstream] = [*inner, downstream]
        self.modules = list(modules)
        self.replicas = modules[0].replicas
        self.trace = trace
        self._chain = [
            _slot(source, module, target)
            for source, module, target in zip(sources, modules, targets, strict=True)
        ]
        for slot in self._chain:  # in a resumed run: what was on its way at the checkpoint
            for kept in slot.module.lagged.pending:
                slot.upstream.send_lagged(*kept.tensors)

    def train(self, step: Step) -> None:
        """Does one optimizer step of every module."""
        own = self.replicas.own(step.microbatches)
        for microbatch in own:
            for slot in self._chain:
                self._learn(slot, step, microbatch)
                if self.replicas.size > 1 and microbatch == own[-1]:
                    with self.trace.span("reduce", slot.module.index, step.number, microbatch):
                        slot.module.reduce(step)  # begins it; the next modules go on meanwhile
        for module in self.modules:
            with self.trace.span("update", module.index, step.number):
                module.update(step)

    def _learn(self, slot: Slot, step: Step, microbatch: int) -> None:
        upstream, module, downstream = slot.upstream, slot.module, slot.downstream
        span = partial(
            self.trace.span, module=module.index, step=step.number, microbatch=microbatch
        )
        with span("recv", content=ACTIVATIONS):
            x, labels = upstream.recv()
        with span("forward"):
            activations = module.forward(x, labels, step, microbatch)
        del x  # only the module holds it, and frees it as soon as it can
        with span("send", content=ACTIVATIONS):
            downstream.send(activations, labels)
        with span("signal"):
            signal = module.signal()
        if step.compare:
            with span("send", content=SIGNAL):
                downstream.send(signal)
            with span("recv", content=SIGNAL):
                module.receive(*upstream.recv())
        with span("learn"):
            lagged = module.learn()
        if lagged:
            with span("send", content=LAGGED):
                upstream.send_lagged(*lagged)
        if module.lagged.expects(step, microbatch):
            with span("recv", content=LAGGED):
                earlier = downstream.recv_lagged()
            with span("apply"):
                module.apply_lagged(step, microbatch, *earlier)

    def evaluate(
        self, batches: Sequence[int], number: int, microbatches: int = 1
    ) -> list[list[Score]]:
        """Scores every module's head on the test set, alone and with all upstream heads.

        Args:
            batches: the number of samples in each test batch, without padding.
            number: the optimizer steps done so far, for the trace.
            microbatches: the number of equal parts in which each batch arrives.

        Returns:
            For each module, scores that add up to those of the test set; with replicas, to those of
            this one's part of it.
        """
        evaluations = [Evaluation(module, microbatches) for module in self.modules]
        with ExitStack() as stack:
            stack.enter_context(seeds.generators_kept())
            for module in self.modules:
                stack.enter_context(evaluating(module))
            for batch, samples in enumerate(batches):
                first = batch * microbatches
                for part in self.replicas.own(microbatches):
                    for slot, evaluation in zip(self._chain, evaluations, strict=True):
                        self._evaluate(slot, evaluation, samples, number, first + part)
                for module, evaluation in zip(self.modules, evaluations, strict=True):
                    with self.trace.span("evaluate", module.index, number - 1, first + part):
                        evaluation.end_batch()
        return [evaluation.scores for evaluation in evaluations]

    def _evaluate(
        self, slot: Slot, evaluation: Evaluation, samples: int, number: int, part: int
    ) -> None:
        span = partial(self.trace.span, module=slot.module.index, step=number - 1, microbatch=part)
        with span("recv", content=TEST_BATCH):
            x, labels, *sums = slot.upstream.recv()
        with span("evaluate"):
            summed = sums[0] if sums else None
            activations, summed = evaluation.see(x, labels, summed, samples, part)
        with span("send", content=TEST_BATCH):
            slot.downstream.send(activations, labels, summed)
