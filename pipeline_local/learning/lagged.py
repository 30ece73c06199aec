"""Lagged messages: tensors sent upstream, which are applied a fixed number of steps later.

So no module waits for them within a step, and no placement changes their effect. The mathematics
chooses the content: today the input gradients of upstream reconciliation (feedback). A
`LaggedContent` here states its shapes, and `LocalModule` its numbers. Stages, edges, contracts,
checkpoints and dry runs do not depend on it.

A module keeps the tensors it needs once the message from downstream has arrived (`awaiting`), and
the messages it has sent that upstream has not applied yet (`pending`). Both are part of a
checkpoint, so that a resumed run finds the messages that were in flight.
"""

from collections import deque
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol

from torch import Tensor

from pipeline_local.config import ReconcileConfig
from pipeline_local.learning.spec import Spec
from pipeline_local.learning.step import LAG


@dataclass(frozen=True)
class ModuleSpecs:
    """The tensors of one module and one microbatch, as they are inside the module.

    Attributes:
        x: its input [B, ...].
        y: its activations [B, ...].
        labels: of the batch [B, ...].
        recalls_input: whether its local loss depends on x beside y.
        parameters: of its body, in order.
    """

    x: Spec
    y: Spec
    labels: Spec
    recalls_input: bool
    parameters: tuple[Spec, ...]


class LaggedContent(Protocol):
    """What a lagged message holds, and what is kept for it, as shapes and dtypes."""

    def message(self, sender: ModuleSpecs) -> tuple[Spec, ...]:
        """What a module sends upstream, before it is rounded for the way."""
        ...

    def awaiting(self, receiver: ModuleSpecs) -> tuple[Spec, ...]:
        """What a module keeps until the message from downstream has come."""
        ...


class InputGradient:
    """The content of upstream reconciliation: the gradient of the sender's loss at its input."""

    def message(self, sender: ModuleSpecs) -> tuple[Spec, ...]:
        """A tensor like the input."""
        return (sender.x,)

    def awaiting(self, receiver: ModuleSpecs) -> tuple[Spec, ...]:
        """The activations and the labels of the batch, and the input if the loss needs it."""
        return receiver.y, receiver.labels, *([receiver.x] if receiver.recalls_input else [])


@dataclass(frozen=True)
class LagPlan:
    """When lagged messages are sent and applied, and what they hold.

    Attributes:
        every: messages are sent on every n-th step.
        content: the content of each message.
        lag: number of steps from sending to applying.
    """

    every: int
    content: LaggedContent = field(default_factory=InputGradient)
    lag: int = LAG

    @classmethod
    def of(cls, reconcile: ReconcileConfig) -> "LagPlan | None":
        """Return the plan for this configuration; None: nothing is sent upstream."""
        return cls(reconcile.every) if reconcile.feeds_back else None

    def is_sent(self, step: int) -> bool:
        """Return whether a message is sent in this step (counted from 0)."""
        return step >= 0 and step % self.every == 0

    def is_applied(self, step: int) -> bool:
        """Return whether an earlier message is applied in this step."""
        return self.is_sent(step - self.lag)

    def under_way(self, step: int) -> list[int]:
        """The earlier steps whose messages are on their way when `step` begins."""
        return [n for n in range(step - self.lag, step) if self.is_sent(n)]

    @property
    def most_pending(self) -> int:
        """Most steps whose messages are in flight at once.

        A channel must hold as many. Else a stage would wait until its message is applied, and keep
        its upstream neighbour from reaching the step that applies it.
        """
        return self.lag // self.every + 1


class Kept(NamedTuple):
    """The tensors of one microbatch of an earlier step."""

    step: int
    microbatch: int
    tensors: tuple[Tensor, ...]


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
    """The lagged messages of a module that are not applied yet: a part of its checkpoint."""

    def __init__(self) -> None:
        self.awaiting = LaggedQueue("awaiting")
        """Tensors that are needed once the downstream neighbour's messages arrive."""
        self.pending = LaggedQueue("pending")
        """Messages sent upstream that are not applied yet."""

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
