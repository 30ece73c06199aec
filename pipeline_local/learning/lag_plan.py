"""The plan of lagged messages: when they are sent and applied, and what they hold.

It is a pure function of steps and modules. The mathematics chooses the contents (contents.py):
input gradients of upstream reconciliation, copies of parameters, outputs of heads. A
`LaggedContent` states when it is sent, its shapes and its numbers.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor, nn

from pipeline_local.learning.lagged_queue import Kept
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
        """Apply the message that was sent `LagPlan.steps` steps ago.

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
        steps: number of steps from sending to applying, the same for all: so they keep their order.
        num_modules: K: the last module gets no message; None: there is always a next one.
    """

    contents: tuple[LaggedContent, ...] = ()
    steps: int = LAG
    num_modules: int | None = None

    def __post_init__(self) -> None:
        """Look at what the contents take the lag for."""
        assert all(c.lag in (None, self.steps) for c in self.contents), "a plan has one lag"

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
        return self.sent(receiver + 1, step - self.steps, microbatch, microbatches)

    def delay(self, content: LaggedContent, receiver: int) -> int:
        """Steps from a batch to the application of what a content says of it."""
        # a hop, and the step before the next one
        return content.hops(receiver) * (self.steps + 1) - 1

    @property
    def longest(self) -> int:
        """The longest delay of all contents."""
        return max((self.delay(content, 0) for content in self.contents), default=self.steps)

    def last_use(self, receiver: int, step: int) -> int:
        """Return the last step that needs what module `receiver` keeps of a step; -1: none does."""
        if not self._exists(receiver + 1):
            return -1
        uses = [
            (content, step + self.delay(content, receiver))
            for content in self.contents
            if content.keeps
        ]
        used = (n for content, n in uses if content.is_sent(receiver + 1, n - self.steps))
        return max(used, default=-1)

    def under_way(self, sender: int, step: int, microbatches: int) -> list[tuple[int, int]]:
        """The (step, microbatch) of the messages that are on their way when `step` begins."""
        parts = range(microbatches)
        earlier = ((n, part) for n in range(step - self.steps, step) for part in parts)
        return [(n, part) for n, part in earlier if self.sent(sender, n, part, microbatches)]

    def _exists(self, module: int) -> bool:
        return self.num_modules is None or module < self.num_modules

    def most_pending(self, content: LaggedContent, microbatches: int) -> int:
        """Most messages with a content that are in flight at once."""
        return (self.steps // content.every + 1) * (1 if content.once else microbatches)
