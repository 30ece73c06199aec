"""The pipeline of this package as a peer: the real stage and edges, fed from memory."""

import copy
from collections.abc import Generator, Sequence
from dataclasses import dataclass, replace
from itertools import count

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from pipeline_local.bench.peer import Peer, Setting, Weights
from pipeline_local.blueprint.blueprint import Blueprint
from pipeline_local.blueprint.run_plan import RunPlan
from pipeline_local.config import ReconcileConfig
from pipeline_local.learning.step import Step
from pipeline_local.pipeline.connect import connect, open_edges
from pipeline_local.pipeline.edge import Message, Nowhere
from pipeline_local.pipeline.stage import Stage
from pipeline_local.pipeline.transport import Inlet, Outlet
from pipeline_local.placement.draw import draw
from pipeline_local.record.trace import Trace
from pipeline_local.watch.status import RankStatus

ENDLESS = 10**9
"""Steps of a run that is measured somewhere in its middle: no end, no evaluation, no logging."""


@dataclass(frozen=True)
class Turn(RunPlan):
    """A part of an endless run: as if it were resumed, and ended before step `stop`."""

    stop: int = 0

    def actions(self, start: int = 0) -> Generator[Step]:
        """Optimizer steps only."""
        for number in range(start, self.stop):
            yield self.step(number)


class Resident:
    """Upstream of a stage that is fed from memory.

    Args:
        steps: what will be done, in order.
        parts: the batch in microbatches: (activations [B, ...], labels [B]).
        signal: sent with each of them on steps that compare; () as data has none.
    """

    waited = 0.0

    def __init__(
        self, steps: Generator[Step], parts: Sequence[Message], signal: Message = ()
    ) -> None:
        self._messages = self._run(steps, parts, signal)

    def recv(self) -> Message:
        """The next message, at once."""
        return next(self._messages)

    def send_lagged(self, *tensors: Tensor) -> None:
        """Nobody applies it."""

    def finish(self) -> None:
        """Nothing is under way."""

    @staticmethod
    def _run(
        steps: Generator[Step], parts: Sequence[Message], signal: Message
    ) -> Generator[Message]:
        for step in steps:
            for part in parts:
                yield part
                if step.compare:
                    yield signal


class Deaf:
    """Downstream of a stage whose neighbour is cut off.

    Args:
        answer: the lagged message, again and again.
    """

    waited = 0.0

    def __init__(self, answer: Message) -> None:
        self._answer = answer

    def send(self, *tensors: Tensor) -> None:
        """Nobody listens."""

    def recv_lagged(self) -> Message:
        """Always the same."""
        return self._answer

    def finish(self, pending: int = 0) -> None:
        """Nothing is under way."""


Ends = tuple[Resident | Inlet, Nowhere | Deaf | Outlet]
"""What a stage stands between."""


class Local(Peer):
    """Local learning: this rank's stage between its real edges.

    Args:
        setting: of the comparison.
        reconcile: how its neighbours are reconciled; a weight of 0 is plain local learning.
    """

    def __init__(self, setting: Setting, reconcile: ReconcileConfig) -> None:
        self.setting = setting
        self.blueprint = _endless(setting.blueprint, reconcile)
        self._number = 0
        self._waited = 0.0
        self._open: Ends | None = None

    def setup(self) -> None:
        """This stage's modules, and its wires."""
        self._make()
        self._p2p_ends = open_edges(
            self.blueprint, self.setting.rank_info, self.setting.kind, RankStatus()
        )

    def begin(self, steps: int) -> None:
        """Go on as a resumed run does."""
        self._open = self._edges(self._turn(self._number + steps))
        self._stage = Stage(self._modules, *self._open, Trace())

    def step(self) -> None:
        """The three acts of every module, and its update."""
        self._stage.train(self._step(self._number))
        self._number += 1

    def end(self) -> None:
        """Let the neighbours take what is still under way."""
        assert self._open is not None, "a turn begins before it ends"
        upstream, downstream = self._open
        downstream.finish(len(self._modules[-1].lagged.awaiting))
        upstream.finish()
        self._waited, self._open = self._waited + _waited(self._open), None

    def seconds(self) -> dict[str, float]:
        """Waiting in channels."""
        return {"waited": self._waited + _waited(self._open or ())}

    def weights(self) -> Weights:
        """Without the auxiliary heads."""
        return {
            block.prefix + name: parameter.detach()
            for module in self._modules
            for block, part in self.blueprint.parts(module)
            for name, parameter in part.named_parameters()
        }

    def flops(self) -> tuple[int, int]:
        """Of this stage's auxiliary heads and of its part of the network, forward, one sample."""
        auxiliary, own = 0, 0
        for module in self._modules:
            shape = self.blueprint.input_shapes[self.blueprint.modules[module.index].start]
            body, y = _flops(module.body, torch.empty(2, *shape, device="meta"))
            head, _ = _flops(module.head, y)
            own += body
            if self.blueprint.is_last(module.index):
                own += head
            else:
                auxiliary += head
        return auxiliary // 2, own // 2

    def _make(self) -> None:
        device = self.setting.rank_info.device
        self._modules = [self.blueprint.module(index, device) for index in self._numbers]

    @property
    def _numbers(self) -> range:
        """This stage's modules."""
        return self.setting.placement.stages[self.setting.rank_info.rank]

    def _turn(self, stop: int) -> Blueprint:
        own = self.blueprint.run_plan
        turn = Turn(own.config, own.num_train, own.num_test, stop)
        return replace(self.blueprint, run_plan=turn)

    def _step(self, number: int) -> Step:
        return self.blueprint.run_plan.step(number)

    def _edges(self, turn: Blueprint) -> Ends:
        upstream, downstream = connect(
            turn, self._numbers, self.setting.rank_info, self._p2p_ends, self._number
        )
        if isinstance(upstream, Inlet):
            return upstream, downstream
        parts = self._microbatches(*self.setting.batch)
        return Resident(self._steps(), parts), downstream

    def _steps(self) -> Generator[Step]:
        yield from map(self._step, count(self._number))

    def _microbatches(self, x: Tensor, labels: Tensor) -> list[Message]:
        number = self.setting.config.train.microbatches
        return list(zip(x.chunk(number), labels.chunk(number), strict=True))


class Alone(Local):
    """The same stage with its neighbours cut off: what it could do if nobody ever waited.

    All stages do so at once, so that they share the host as they do in the pipeline.
    """

    def setup(self) -> None:
        """This stage's modules, and what its neighbours would send."""
        self._make()

    def _step(self, number: int) -> Step:
        """At rate zero: there is nothing to learn from neighbours that are not there."""
        return replace(super()._step(number), lr=0.0)

    def _edges(self, turn: Blueprint) -> Ends:
        first, last = self._modules[0].index, self._modules[-1].index
        x, labels = self.setting.batch
        if first == 0:
            upstream = Resident(self._steps(), self._microbatches(x, labels))
        else:
            like = self._like(first - 1)
            parts = [(like, part[1]) for part in self._microbatches(x, labels)]
            upstream = Resident(self._steps(), parts, (self._gradient(first - 1),))
        if self.blueprint.is_last(last):
            return upstream, Nowhere()
        return upstream, Deaf((self._gradient(last),))

    def _gradient(self, index: int) -> Tensor:
        """Something shaped like the gradient at a module's activations."""
        return (self._like(index) / 1000).to(self.blueprint.wire_format.gradients)

    def _like(self, index: int) -> Tensor:
        """Random activations of a module."""
        spec = self.blueprint.contract(index).activations
        generator = torch.Generator().manual_seed(index)
        return torch.randn(spec.shape, generator=generator).to(
            self.setting.rank_info.device, spec.dtype
        )


def _waited(edges: Sequence[Resident | Inlet | Nowhere | Deaf | Outlet]) -> float:
    return sum(edge.waited for edge in edges)


def _endless(blueprint: Blueprint, reconcile: ReconcileConfig) -> Blueprint:
    config = blueprint.config
    train = replace(
        config.train, epochs=None, steps=ENDLESS, log_every=ENDLESS, evaluate_every=ENDLESS
    )
    optimizer = replace(config.optimizer, warmup=0.0)  # all peers keep to the highest rate
    config = replace(config, train=train, optimizer=optimizer, reconcile=reconcile)
    return draw(config, blueprint.info)


def _flops(module: nn.Module, x: Tensor) -> tuple[int, Tensor]:
    """Of one forward pass on the meta device, and what it gives."""
    paper = copy.deepcopy(module).to("meta")
    with FlopCounterMode(display=False) as counter:
        y: Tensor = paper(x.to(next((p.dtype for p in paper.parameters()), x.dtype)))
    return counter.get_total_flops(), y.detach()
