"""Local learning as `pipeline-local bench` runs it: the real stage and edges, fed from memory."""

from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import count
from typing import Literal

import torch
import torch.distributed as dist
from torch import Tensor

from pipeline_local.bench.baseline import Baseline, Weights, Workload, network_weights
from pipeline_local.blueprint.blueprint import Blueprint
from pipeline_local.blueprint.contract import Spec
from pipeline_local.blueprint.run_plan import RunPlan
from pipeline_local.config import ReconcileConfig
from pipeline_local.engines.replicas import Replicas
from pipeline_local.learning import information
from pipeline_local.learning.step import Step
from pipeline_local.pipeline.connect import connect, open_edges, open_replicas
from pipeline_local.pipeline.dealing import DealtInlet, DealtOutlet
from pipeline_local.pipeline.edge import Message, Nowhere
from pipeline_local.pipeline.source import Source
from pipeline_local.pipeline.stage import Stage
from pipeline_local.pipeline.transport import Inlet, Outlet
from pipeline_local.placement.costs import flops
from pipeline_local.placement.draw import draw
from pipeline_local.record.trace import Trace
from pipeline_local.watch.status import RankStatus

ENDLESS = 10**9
"""Steps of the benchmarked run. So many that it never ends, evaluates or logs while it is timed."""


@dataclass(frozen=True)
class PartialRunPlan(RunPlan):
    """The run plan of one turn: a resumed run that ends before step `stop`."""

    stop: int = 0

    def actions(self, start: int = 0) -> Generator[Step]:
        """Yield the optimizer steps from `start` to `stop`, without evaluations or checkpoints."""
        for number in range(start, self.stop):
            yield self.step(number)


class InMemoryUpstream:
    """The upstream edge of a stage whose input lies in memory: nothing is received.

    Args:
        steps: the steps of the turn, in order.
        parts: the microbatches of the batch: (activations [B, ...], labels [B]).
        signal: what follows each microbatch on steps that compare gradients; () for the first
            stage, as data has no signal.
    """

    waited = 0.0

    def __init__(
        self, steps: Generator[Step], parts: Sequence[Message], signal: Message = ()
    ) -> None:
        self._messages = self._run(steps, parts, signal)

    def recv(self) -> Message:
        """Return the next message without waiting."""
        return next(self._messages)

    def send_lagged(self, *tensors: Tensor) -> None:
        """Drop the message: there is no upstream stage."""

    def finish(self) -> None:
        """Do nothing: no message is in flight."""

    @staticmethod
    def _run(
        steps: Generator[Step], parts: Sequence[Message], signal: Message
    ) -> Generator[Message]:
        for step in steps:
            for part in parts:
                yield part
                if step.compare:
                    yield signal


class AnsweringDownstream:
    """The downstream edge of a stage without a neighbour: it has all answers.

    Args:
        answers: the lagged messages that `recv_lagged` returns, in order.
    """

    waited = 0.0

    def __init__(self, answers: Iterator[Message]) -> None:
        self._answers = answers

    def send(self, *tensors: Tensor) -> None:
        """Drop the message: there is no downstream stage."""

    def recv_lagged(self) -> Message:
        """Return the next answer."""
        return next(self._answers)

    def finish(self, steps: int) -> None:
        """Do nothing: no message is in flight."""


class ReplicasApart(Replicas):
    """Replicas that share the microbatches, and exchange nothing.

    Args:
        size: number of replicas.
        index: of this one.
    """

    def __init__(self, size: int, index: int) -> None:
        super().__init__()
        self.size, self.index = size, index


class BytesAlone(Replicas):
    """Replicas that send each other as many bytes as they would, and take over nothing.

    Args:
        group: of all replicas of the stage.
    """

    def __init__(self, group: dist.ProcessGroup) -> None:
        super().__init__(group)
        self._sent: dict[int, Tensor] = {}

    def share(self, tensor: Tensor) -> Tensor:
        """Return the tensor, as nothing is added to it."""
        return tensor

    def sum(self, tensors: Sequence[Tensor]) -> Callable[[], list[Tensor]]:
        """Begin to add up one tensor of the same size in 32-bit numbers, which is always zero."""
        size = sum(tensor.nbytes for tensor in tensors) // 4
        if size not in self._sent:
            self._sent[size] = torch.zeros(size, device=tensors[0].device)
        work = dist.all_reduce(self._sent[size], group=self.group, async_op=True)
        assert work is not None, "this rank is in the group"

        def wait() -> list[Tensor]:
            work.wait()
            return list(tensors)

        return wait


Exchange = Literal["gradients", "bytes", "nothing"]
"""What replicas exchange; all but gradients show what their exchange costs."""


Upper = InMemoryUpstream | Inlet | DealtInlet
Lower = Nowhere | AnsweringDownstream | Outlet | DealtOutlet
StageEdges = tuple[Upper, Lower]
"""The two edges of a stage: upstream and downstream."""


class LocalPipeline(Baseline):
    """Local learning: this rank trains its stage between its real edges.

    Args:
        workload: the network and batch that every method trains.
        reconcile: the reconciliation to use; a weight of 0 is plain local learning.
        exchange: what replicas exchange. Without gradients they learn other things, so only the
            time counts.
    """

    def __init__(
        self, workload: Workload, reconcile: ReconcileConfig, exchange: Exchange = "gradients"
    ) -> None:
        self.workload = workload
        self._exchange = exchange
        self.blueprint = _endless(workload.blueprint, reconcile)
        self._number = 0
        self._waited = 0.0
        self._open: StageEdges | None = None

    def setup(self) -> None:
        """Build this stage's modules and connect it to its neighbours."""
        own, mesh = self.workload.rank_info, self.workload.mesh
        if self._exchange == "nothing":
            self._make(self._apart)
        else:
            replicas = open_replicas(mesh, own, self.workload.kind)
            if self._exchange == "bytes" and replicas.group is not None:
                replicas = BytesAlone(replicas.group)
            self._make(replicas)
        self._p2p_ends = open_edges(self.blueprint, own, self.workload.kind, RankStatus(), mesh)

    def begin(self, steps: int) -> None:
        """Connect the stage for the next `steps` steps, as a resumed run does."""
        self._open = self._edges(self._turn(self._number + steps))
        self._stage = Stage(self._modules, *self._open, Trace())

    def step(self) -> None:
        """Run the three acts and the update of every module."""
        self._stage.train(self._step(self._number))
        self._number += 1

    def end(self) -> None:
        """Wait until the neighbours have received all messages in flight."""
        assert self._open is not None, "a turn begins before it ends"
        upstream, downstream = self._open
        downstream.finish(self._number)
        upstream.finish()
        self._waited, self._open = self._waited + _waited(self._open), None

    def seconds(self) -> dict[str, float]:
        """Return the seconds that this rank has waited in channels."""
        return {"waited": self._waited + _waited(self._open or ())}

    def weights(self) -> Weights:
        """Return the weights without those of the auxiliary heads."""
        return network_weights(self.blueprint, self._modules)

    def flops(self) -> tuple[int, int]:
        """Count the forward FLOPs of one sample: auxiliary heads, and this stage's network."""
        blueprint = self.blueprint
        auxiliary, own = 0, 0
        for index in self._numbers:
            blocks = blueprint.modules[index]
            bodies = zip(blueprint.meta_body(index), blocks, strict=True)
            own += sum(flops(body, blueprint.meta_input(block)) for body, block in bodies)
            y = torch.empty(2, *blueprint.output_shapes[blocks.stop - 1], device="meta")
            head = sum(flops(part, y) for part in information.parts(blueprint.meta_head(index)))
            if blueprint.is_last(index):
                own += head
            else:
                auxiliary += round(blueprint.config.head.fraction * head)
        return auxiliary // 2, own // 2

    def _make(self, replicas: Replicas) -> None:
        device = self.workload.rank_info.device
        self._modules = [self.blueprint.module(k, device, replicas) for k in self._numbers]

    @property
    def _apart(self) -> Replicas:
        mesh, rank = self.workload.mesh, self.workload.rank_info.rank
        return ReplicasApart(mesh.replicas[mesh.stage(rank)], mesh.replica(rank))

    @property
    def _numbers(self) -> range:
        """The indices of this stage's modules."""
        return self.workload.placement.stages[self.workload.stage]

    def _turn(self, stop: int) -> Blueprint:
        turn = PartialRunPlan(**vars(self.blueprint.run_plan), stop=stop)
        return replace(self.blueprint, run_plan=turn)

    def _step(self, number: int) -> Step:
        return self.blueprint.run_plan.step(number)

    def _edges(self, turn: Blueprint) -> StageEdges:
        upstream, downstream = connect(
            turn,
            self._numbers,
            self.workload.rank_info,
            self._p2p_ends,
            self._number,
            self.workload.mesh,
        )
        if not isinstance(upstream, Source):
            return upstream, downstream
        parts = self._microbatches(*self.workload.batch)
        return InMemoryUpstream(self._steps(), parts), downstream

    def _steps(self) -> Generator[Step]:
        yield from map(self._step, count(self._number))

    def _microbatches(self, x: Tensor, labels: Tensor) -> list[Message]:
        number = self.workload.config.train.microbatches
        parts = list(zip(x.chunk(number), labels.chunk(number), strict=True))
        return [parts[own] for own in self._apart.own(number)]


class IsolatedStage(LocalPipeline):
    """The same stage without neighbours: its speed if it never had to wait for a message.

    All stages run at the same time, so that they share the host as they do in the pipeline.
    """

    def setup(self) -> None:
        """Build this stage's modules; there is nothing to connect."""
        self._make(self._apart)

    def _step(self, number: int) -> Step:
        """A step with learning rate 0, as the random messages must not change the weights."""
        return replace(super()._step(number), lr=0.0)

    def _edges(self, turn: Blueprint) -> StageEdges:
        first, last = self._modules[0].index, self._modules[-1].index
        x, labels = self.workload.batch
        if first == 0:
            upstream = InMemoryUpstream(self._steps(), self._microbatches(x, labels))
        else:
            contract = self.blueprint.contract(first - 1)
            like = self._like(contract.activations)
            parts = [(like, part[1]) for part in self._microbatches(x, labels)]
            signal = self._like(contract.gradients, 1000)
            upstream = InMemoryUpstream(self._steps(), parts, (signal,))
        if self.blueprint.is_last(last):
            return upstream, Nowhere()
        return upstream, AnsweringDownstream(self._answers(turn, last))

    def _answers(self, turn: Blueprint, index: int) -> Iterator[Message]:
        """Small random numbers as the lagged messages that a module receives."""
        contract = turn.contract(index)
        made: dict[tuple[Spec, ...], Message] = {}
        for _, specs in contract.lagged_traffic(turn.run_plan, self._number):
            if specs not in made:
                made[specs] = tuple(self._like(spec, 1000) for spec in specs)
            yield made[specs]

    def _like(self, spec: Spec, over: int = 1) -> Tensor:
        """Random numbers of this shape and dtype, divided by a number."""
        drawn = torch.randn(spec.shape, generator=torch.Generator().manual_seed(0)) / over
        return drawn.to(self.workload.rank_info.device, spec.dtype)


def _waited(
    edges: Sequence[Upper | Lower],
) -> float:
    return sum(edge.waited for edge in edges)


def _endless(blueprint: Blueprint, reconcile: ReconcileConfig) -> Blueprint:
    config = blueprint.config
    train = replace(
        config.train,
        epochs=None,
        tokens=None,
        steps=ENDLESS,
        log_every=ENDLESS,
        evaluate_every=ENDLESS,
    )
    optimizer = replace(config.optimizer, warmup=0.0)  # all methods use the highest rate
    config = replace(config, train=train, optimizer=optimizer, reconcile=reconcile)
    return draw(config, blueprint.info)
