"""Lagged messages: tensors sent upstream, which are applied a fixed number of steps later.

So no module waits for them within a step, and no placement changes their effect. The mathematics
chooses their contents (contents.py): input gradients of upstream reconciliation, copies of
parameters, outputs of heads. A `LaggedContent` states when it is sent, its shapes and its numbers.
What several contents have to say with one microbatch travels as one message. Modules, stages,
edges, contracts, checkpoints and dry runs know none of them.

A module keeps what it needs once the message from downstream has arrived (`awaiting`), what it has
got and passes on in the next step (`passing`), and the messages it has sent that upstream has not
applied yet (`pending`). All are part of a checkpoint, so that a resumed run finds the messages that
were in flight.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Protocol

from torch import Tensor, nn

from pipeline_local.engines.replicas import Replicas
from pipeline_local.learning.lagged_queue import Kept, LaggedQueue
from pipeline_local.learning.spec import Spec
from pipeline_local.learning.step import LAG, Step


@dataclass(frozen=True)
class ModuleSpecs:
    """The tensors of one module and one microbatch, as they are inside the module.

    Attributes:
        x: its input [B, ...].
        y: its activations [B, ...].
        labels: of the batch [B, ...].
        recalls_input: whether its local loss depends on x beside y.
        blocks: the parameters of each block of its body, in order.
        part: what its head adds to the sum of all heads (`Task.part`).
        unembedding: the matrix of the backbone's classifier, where that has one (`HasHidden`).
    """

    x: Spec
    y: Spec
    labels: Spec
    recalls_input: bool
    blocks: tuple[tuple[Spec, ...], ...]
    part: Spec
    unembedding: tuple[Spec, ...] = ()

    @property
    def kept(self) -> tuple[Spec, ...]:
        """What is kept of a batch for later: activations, labels, and the input if recalled."""
        return self.y, self.labels, *([self.x] if self.recalls_input else [])


SpecsOf = Callable[[int], ModuleSpecs]
"""The specs of each module, by its index from 0."""


class Learner(Protocol):
    """What a content may use of a module."""

    index: int
    body: nn.Module
    head: nn.Module

    def part(self) -> Tensor:
        """Return the head's part of this microbatch (`Task.part`)."""
        ...

    def apply_feedback(self, step: Step, kept: Kept, feedback: Tensor) -> None:
        """Train the head with the batch of an earlier step (`LocalModule.apply_feedback`)."""
        ...

    def imitate(self, step: Step, kept: Kept, later: Tensor, heads: int) -> Tensor:
        """Train the head with the batch of an earlier step (`LocalModule.imitate`)."""
        ...


class LaggedContent(ABC):
    """A part of lagged messages: when it is sent, its shapes and its numbers. It is immutable.

    Attributes:
        every: messages of one module have it on every n-th step.
        once: whether it is sent with the last microbatch of a step only; else with each.
        keeps: whether activations and labels of each microbatch are kept until it has come.
        differentiates: whether it needs the gradient at the sender's input.
        lag: that of its plan, where the steps in which it is sent depend on it.
    """

    every: int
    once = False
    keeps = False
    differentiates = False
    lag: int | None = None

    def hops(self, receiver: int) -> int:
        """Return the number of edges that it has passed when module `receiver` applies it."""
        return 1

    def is_begun(self, sender: int) -> bool:
        """Return whether module `sender` makes it of its own outputs."""
        return False

    def is_passed_on(self, sender: int) -> bool:
        """Return whether module `sender` sends what it has applied in the step before."""
        return False

    def is_sent(self, sender: int, step: int) -> bool:
        """Return whether module `sender` (from 0) sends it in this step (from 0)."""
        return step % self.every == 0

    @abstractmethod
    def specs(self, sender: int, of: SpecsOf) -> tuple[Spec, ...]:
        """What module `sender` sends upstream, before it is rounded for the way."""

    @abstractmethod
    def message(self, sender: Learner, g: Tensor, passed: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        """What this microbatch sends upstream, as `specs` says it; nobody may write to it later.

        Args:
            sender: the module, after its backward pass and before its update.
            g: the plain gradient at its input, if the content `differentiates`.
            passed: what `apply` has returned in the step before, if it `is_passed_on`.
        """

    @abstractmethod
    def apply(
        self, receiver: Learner, step: Step, kept: Kept | None, arrived: Iterator[Tensor]
    ) -> tuple[Tensor, ...]:
        """Apply the message that was sent `LagPlan.lag` steps ago.

        Returns:
            The tensor that is passed on in the next step, if it `is_passed_on`.

        Args:
            receiver: the module, after its backward pass and before its update.
            step: the current step.
            kept: activations and labels of the microbatch that it belongs to, if the content
                `keeps` them.
            arrived: the tensors of the message; the content takes as many as it has sent. None
                where no module is downstream.
        """


@dataclass(frozen=True)
class LagPlan:
    """When lagged messages are sent and applied, and what they hold.

    Attributes:
        contents: their parts, in order.
        lag: number of steps from sending to applying, the same for all: so they keep their order.
        num_modules: K: the last module gets no message; None: there is always a next one.
    """

    contents: tuple[LaggedContent, ...] = ()
    lag: int = LAG
    num_modules: int | None = None

    def __post_init__(self) -> None:
        """Look at what the contents take the lag for."""
        assert all(c.lag in (None, self.lag) for c in self.contents), "a plan has one lag"

    def sent(
        self, sender: int, step: int, microbatch: int, microbatches: int
    ) -> tuple[LaggedContent, ...]:
        """Return what module `sender` (from 0) sends with a microbatch; () for no message."""
        if step < 0 or not self._exists(sender):
            return ()
        last = microbatch == microbatches - 1
        return tuple(c for c in self.contents if (last or not c.once) and c.is_sent(sender, step))

    def applied(
        self, receiver: int, step: int, microbatch: int, microbatches: int
    ) -> tuple[LaggedContent, ...]:
        """Return what module `receiver` applies after a microbatch; () for no message."""
        return self.sent(receiver + 1, step - self.lag, microbatch, microbatches)

    def delay(self, content: LaggedContent, receiver: int) -> int:
        """Steps from a batch to the application of what a content says of it."""
        return content.hops(receiver) * (self.lag + 1) - 1  # a hop and the step before the next one

    @property
    def longest(self) -> int:
        """The longest delay of all contents."""
        return max((self.delay(content, 0) for content in self.contents), default=self.lag)

    def last_use(self, receiver: int, step: int) -> int:
        """Return the last step that needs what module `receiver` keeps of a step; -1: none does."""
        if not self._exists(receiver + 1):
            return -1
        uses = [
            (content, step + self.delay(content, receiver))
            for content in self.contents
            if content.keeps
        ]
        used = (n for content, n in uses if content.is_sent(receiver + 1, n - self.lag))
        return max(used, default=-1)

    def under_way(self, sender: int, step: int, microbatches: int) -> list[tuple[int, int]]:
        """The (step, microbatch) of the messages that are on their way when `step` begins."""
        earlier = ((n, part) for n in range(step - self.lag, step) for part in range(microbatches))
        return [(n, part) for n, part in earlier if self.sent(sender, n, part, microbatches)]

    def _exists(self, module: int) -> bool:
        return self.num_modules is None or module < self.num_modules

    def most_pending(self, content: LaggedContent, microbatches: int) -> int:
        """Most messages with a content that are in flight at once."""
        return (self.lag // content.every + 1) * (1 if content.once else microbatches)


class LaggedMessages:
    """The lagged messages of a module: a part of its checkpoint.

    Args:
        plan: when there are messages, and what they hold.
        index: of the module, from 0.
    """

    def __init__(self, plan: LagPlan | None = None, index: int = 0) -> None:
        self._plan = plan or LagPlan()
        self._index = index
        self.awaiting = LaggedQueue("awaiting")
        """Batches that are needed once the downstream neighbour's messages arrive."""
        self.passing = LaggedQueue("passing")
        """What has come from downstream and goes further upstream in the next step."""
        self.pending = LaggedQueue("pending")
        """Messages sent upstream that are not applied yet."""

    def differentiate(self, step: Step, microbatch: int) -> bool:
        """Return whether the message of this microbatch needs the gradient at the input."""
        return any(content.differentiates for content in self._sent(step, microbatch))

    def begins(self, step: Step, microbatch: int) -> bool:
        """Return whether the message of this microbatch is made of the module's own outputs."""
        return any(content.is_begun(self._index) for content in self._sent(step, microbatch))

    def keep(self, step: Step, microbatch: int, *tensors: Tensor) -> None:
        """Keep tensors of a batch (`ModuleSpecs.kept`), if the message from downstream will need
        them."""
        if self._plan.last_use(self._index, step.number) >= 0:
            self.awaiting.push(step.number, microbatch, *tensors)

    def send(self, module: Learner, step: Step, microbatch: int, g: Tensor) -> tuple[Tensor, ...]:
        """Return the message of this microbatch for the upstream neighbour; () for none.

        Args:
            module: the one that these are the messages of.
            step, microbatch: the current ones.
            g: the plain gradient at the module's input [B, ...].
        """
        parts = self._sent(step, microbatch)
        tensors = tuple(
            tensor
            for content, passed in zip(parts, self._passed(parts), strict=True)
            for tensor in content.message(module, g, passed)
        )
        if parts:
            self.pending.push(step.number, microbatch, *tensors)
        return tensors

    def expects(self, step: Step, microbatch: int) -> bool:
        """Return whether a message from downstream is applied after this microbatch."""
        return bool(self._applied(step, microbatch))

    def apply(
        self, module: Learner, step: Step, microbatch: int, tensors: tuple[Tensor, ...]
    ) -> None:
        """Apply the oldest message from downstream.

        Args:
            module, step, microbatch: as for `send`.
            tensors: the message; () where no module is downstream.
        """
        plan, index, arrived = self._plan, self._index, iter(tensors)
        passing: list[Tensor] = []
        for content in self._applied(step, microbatch):
            batch = step.number - plan.delay(content, index)
            kept = self.awaiting.of(batch, microbatch) if content.keeps else None
            passed = content.apply(module, step, kept, arrived)
            passing += passed if content.is_passed_on(index) else ()
        if passing:
            self.passing.push(step.number, microbatch, *passing)
        self.awaiting.retain(
            lambda kept: (
                kept.microbatch != microbatch or plan.last_use(index, kept.step) > step.number
            )
        )

    def brings_copies(self, step: Step) -> bool:
        """Return whether a message that is applied in this step may hold copies of parameters."""
        last = step.microbatches - 1
        return any(content.once for content in self._applied(step, last))

    def forget(self, step: int) -> None:
        """Drop the messages that upstream has applied at the end of this step."""
        self.pending.drop(step - self._plan.lag)

    def _passed(self, parts: Sequence[LaggedContent]) -> list[tuple[Tensor, ...]]:
        """What each part of a message passes on: one tensor, or none."""
        counts = [int(content.is_passed_on(self._index)) for content in parts]
        tensors = iter(self.passing.pop().tensors if any(counts) else ())
        return [tuple(islice(tensors, count)) for count in counts]

    def _sent(self, step: Step, microbatch: int) -> tuple[LaggedContent, ...]:
        if self._index == 0:
            return ()
        return self._plan.sent(self._index, step.number, microbatch, step.microbatches)

    def _applied(self, step: Step, microbatch: int) -> tuple[LaggedContent, ...]:
        return self._plan.applied(self._index, step.number, microbatch, step.microbatches)

    def tensors(self) -> dict[str, Tensor]:
        """Return all tensors by name."""
        return {name: t for queue in self._queues for name, t in queue.tensors().items()}

    def load(self, named: Mapping[str, Tensor], replicas: Replicas) -> None:
        """Restore the queues from the result of `tensors`, as far as they are of this replica.

        Where all contents are sent once per step, the number of microbatches may have changed. Such
        a message belongs to the last one: to the last replica, as each has equally many of them.
        """
        is_last = replicas.index == replicas.size - 1
        once = all(content.once for content in self._plan.contents)
        for queue in self._queues:
            queue.load(named)
            queue.retain(lambda kept: is_last if once else replicas.has(kept.microbatch))
        if self._index + 1 == self._plan.num_modules:  # earlier versions have kept some for nobody
            self.awaiting.retain(lambda _: False)

    @property
    def _queues(self) -> tuple[LaggedQueue, LaggedQueue, LaggedQueue]:
        return self.awaiting, self.passing, self.pending
