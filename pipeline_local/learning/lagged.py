"""Lagged messages: tensors sent upstream, which are applied a fixed number of steps later.

So no module waits for them within a step, and no placement changes their effect. The mathematics
chooses their contents (contents.py): input gradients of upstream reconciliation, copies of
parameters. A `LaggedContent` states when it is sent, its shapes and its numbers. What several
contents have to say with one microbatch travels as one message. Modules, stages, edges, contracts,
checkpoints and dry runs know none of them.

A module keeps what it needs once the message from downstream has arrived (`awaiting`), and the
messages it has sent that upstream has not applied yet (`pending`). Both are part of a checkpoint,
so that a resumed run finds the messages that were in flight.
"""

from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import NamedTuple, Protocol

from torch import Tensor, nn

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
        unembedding: the matrix of the backbone's classifier, where that has one (`HasHidden`).
    """

    x: Spec
    y: Spec
    labels: Spec
    recalls_input: bool
    blocks: tuple[tuple[Spec, ...], ...]
    unembedding: tuple[Spec, ...] = ()

    @property
    def kept(self) -> tuple[Spec, ...]:
        """What is kept of a batch for later: activations, labels, and the input if recalled."""
        return self.y, self.labels, *([self.x] if self.recalls_input else [])


SpecsOf = Callable[[int], ModuleSpecs]
"""The specs of each module, by its index from 0."""


class Kept(NamedTuple):
    """The tensors of one microbatch of an earlier step."""

    step: int
    microbatch: int
    tensors: tuple[Tensor, ...]


class Learner(Protocol):
    """What a content may use of a module."""

    body: nn.Module
    head: nn.Module

    def heed(self, step: Step, kept: Kept, feedback: Tensor) -> None:
        """Train the head with the batch of an earlier step (`LocalModule.heed`)."""
        ...


class LaggedContent(ABC):
    """A part of lagged messages: when it is sent, its shapes and its numbers. It is immutable.

    Attributes:
        every: messages of one module have it on every n-th step.
        once: whether it is sent with the last microbatch of a step only; else with each.
        keeps: whether activations and labels of the batch are kept until it has come.
        differentiates: whether it needs the gradient at the sender's input.
    """

    every: int
    once = False
    keeps = False
    differentiates = False

    def is_sent(self, sender: int, step: int) -> bool:
        """Return whether module `sender` (from 0) sends it in this step (from 0)."""
        return step % self.every == 0

    @abstractmethod
    def specs(self, sender: int, of: SpecsOf) -> tuple[Spec, ...]:
        """What module `sender` sends upstream, before it is rounded for the way."""

    @abstractmethod
    def message(self, sender: Learner, g: Tensor) -> tuple[Tensor, ...]:
        """What this microbatch sends upstream, as `specs` says it; nobody may write to it later.

        Args:
            sender: the module, after its backward pass and before its update.
            g: the plain gradient at its input, if the content `differentiates`.
        """

    @abstractmethod
    def apply(
        self, receiver: Learner, step: Step, kept: Kept | None, arrived: Iterator[Tensor]
    ) -> None:
        """Apply the message that was sent `LagPlan.lag` steps ago.

        Args:
            receiver: the module, after its backward pass and before its update.
            step: the current step.
            kept: activations and labels of the microbatch that it was sent with, if the content
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
    """

    contents: tuple[LaggedContent, ...] = ()
    lag: int = LAG

    def sent(
        self, sender: int, step: int, microbatch: int, microbatches: int
    ) -> tuple[LaggedContent, ...]:
        """Return what module `sender` (from 0) sends with a microbatch; () for no message."""
        if step < 0:
            return ()
        last = microbatch == microbatches - 1
        return tuple(c for c in self.contents if (last or not c.once) and c.is_sent(sender, step))

    def applied(
        self, receiver: int, step: int, microbatch: int, microbatches: int
    ) -> tuple[LaggedContent, ...]:
        """Return what module `receiver` applies after a microbatch; () for no message."""
        return self.sent(receiver + 1, step - self.lag, microbatch, microbatches)

    def under_way(self, sender: int, step: int, microbatches: int) -> list[tuple[int, int]]:
        """The (step, microbatch) of the messages that are on their way when `step` begins."""
        earlier = ((n, part) for n in range(step - self.lag, step) for part in range(microbatches))
        return [(n, part) for n, part in earlier if self.sent(sender, n, part, microbatches)]

    def most_pending(self, content: LaggedContent, microbatches: int) -> int:
        """Most messages with a content that are in flight at once."""
        return (self.lag // content.every + 1) * (1 if content.once else microbatches)


class LaggedQueue:
    """A first-in-first-out queue that can be saved and restored at any step.

    Args:
        name: prefix of the names of its tensors in a checkpoint.
    """

    def __init__(self, name: str) -> None:
        self._name = name
        self._kept: deque[Kept] = deque()

    def __len__(self) -> int:
        return len(self._kept)

    def push(self, step: int, microbatch: int, *tensors: Tensor) -> None:
        """Append the tensors of a microbatch.

        Raises:
            ValueError: there are none, and so a checkpoint would not know of it.
        """
        if not tensors:
            raise ValueError("a microbatch keeps at least one tensor, as checkpoints hold tensors")
        self._kept.append(Kept(step, microbatch, tensors))

    def pop(self) -> Kept:
        """Remove and return the oldest entry."""
        return self._kept.popleft()

    def drop(self, last: int) -> None:
        """Remove all entries up to and including step `last`."""
        while self._kept and self._kept[0].step <= last:
            self._kept.popleft()

    def tensors(self) -> dict[str, Tensor]:
        """Return all tensors, named `<name>.<step>.<microbatch>.<position>`."""
        return {
            f"{self._name}.{kept.step}.{kept.microbatch}.{position}": tensor
            for kept in self._kept
            for position, tensor in enumerate(kept.tensors)
        }

    def load(self, named: Mapping[str, Tensor]) -> None:
        """Restore the queue from the result of `tensors`; names with another prefix are ignored."""
        found: dict[tuple[int, int], dict[int, Tensor]] = {}
        for name, tensor in named.items():
            owner, *numbers = name.split(".")
            if owner == self._name:
                step, microbatch, position = map(int, numbers)
                found.setdefault((step, microbatch), {})[position] = tensor
        self._kept = deque(
            Kept(*key, tuple(tensors[i] for i in sorted(tensors)))
            for key, tensors in sorted(found.items())
        )

    def __iter__(self) -> Iterator[Kept]:
        return iter(self._kept)


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
        self.pending = LaggedQueue("pending")
        """Messages sent upstream that are not applied yet."""

    def differentiate(self, step: Step, microbatch: int) -> bool:
        """Return whether the message of this microbatch needs the gradient at the input."""
        return any(content.differentiates for content in self._sent(step, microbatch))

    def keep(self, step: Step, microbatch: int, *tensors: Tensor) -> None:
        """Keep tensors of a batch (`ModuleSpecs.kept`), if the message from downstream will need
        them."""
        parts = self._plan.sent(self._index + 1, step.number, microbatch, step.microbatches)
        if any(content.keeps for content in parts):
            self.awaiting.push(step.number, microbatch, *tensors)

    def send(self, module: Learner, step: Step, microbatch: int, g: Tensor) -> tuple[Tensor, ...]:
        """Return the message of this microbatch for the upstream neighbour; () for none.

        Args:
            module: the one that these are the messages of.
            step, microbatch: the current ones.
            g: the plain gradient at the module's input [B, ...].
        """
        parts = self._sent(step, microbatch)
        tensors = tuple(tensor for content in parts for tensor in content.message(module, g))
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
        parts, arrived = self._applied(step, microbatch), iter(tensors)
        kept = self.awaiting.pop() if any(content.keeps for content in parts) else None
        for content in parts:
            content.apply(module, step, kept, arrived)

    def forget(self, step: int) -> None:
        """Drop the messages that upstream has applied at the end of this step."""
        self.pending.drop(step - self._plan.lag)

    def _sent(self, step: Step, microbatch: int) -> tuple[LaggedContent, ...]:
        if self._index == 0:
            return ()
        return self._plan.sent(self._index, step.number, microbatch, step.microbatches)

    def _applied(self, step: Step, microbatch: int) -> tuple[LaggedContent, ...]:
        return self._plan.applied(self._index, step.number, microbatch, step.microbatches)

    def tensors(self) -> dict[str, Tensor]:
        """Return all tensors by name."""
        return {**self.awaiting.tensors(), **self.pending.tensors()}

    def load(self, named: Mapping[str, Tensor]) -> None:
        """Restore both queues from the result of `tensors`."""
        self.awaiting.load(named)
        self.pending.load(named)


_EARLIER = {"feedback.unheeded.": "lagged.pending.", "feedback.awaiting.": "lagged.awaiting."}
"""How earlier checkpoints name lagged messages, and how this program does."""


def current_names(named: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Renames the tensors of a checkpoint whose lagged messages have their earlier names."""

    def renamed(name: str) -> str:
        for old, new in _EARLIER.items():
            if name.startswith(old):
                return new + name.removeprefix(old)
        return name

    return {renamed(name): tensor for name, tensor in named.items()}
