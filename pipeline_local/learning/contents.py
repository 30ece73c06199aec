"""The contents of lagged messages: what flows upstream, and what is done with it there."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import islice
from typing import cast

from torch import Tensor, nn

from pipeline_local.config import Config
from pipeline_local.learning import heads
from pipeline_local.learning.heads import EmaHead, HasCopy
from pipeline_local.learning.information import parts
from pipeline_local.learning.lag_plan import LaggedContent, LagPlan, Learner, SpecsOf
from pipeline_local.learning.lagged_queue import Kept
from pipeline_local.learning.spec import Spec
from pipeline_local.learning.step import LAG, Step
from pipeline_local.learning.tasks.next_token import HasHidden

TIED_REFRESH = 10
"""Steps from one publication of a tied embedding to the next, where no head's option says it."""


@dataclass(frozen=True)
class Feedback(LaggedContent):
    """Upstream reconciliation: the gradient of the sender's loss at its input, with which the
    receiver trains its head."""

    every: int
    keeps = True
    differentiates = True

    def specs(self, sender: int, of: SpecsOf) -> tuple[Spec, ...]:
        """A tensor like the input."""
        return (of(sender).x,)

    def message(self, sender: Learner, g: Tensor, passed: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        """The gradient itself."""
        return (g,)

    def apply(
        self, receiver: Learner, step: Step, kept: Kept | None, arrived: Iterator[Tensor]
    ) -> tuple[()]:
        """Bring the head's signal closer to the gradient."""
        feedback = next(arrived, None)
        if feedback is not None:
            assert kept is not None, "it keeps what it needs"
            receiver.apply_feedback(step, kept, feedback)
        return ()


@dataclass(frozen=True)
class BlockCopies(LaggedContent):
    """Parameter copies: those of the sender's first block, which the receiver's head follows.

    A message of step n `every` (n = 1, 2, ...) holds the parameters as that many updates have made
    them; the initial ones are known upstream. The head uses it from the step after it has come.
    """

    every: int
    once = True

    def is_sent(self, sender: int, step: int) -> bool:
        """Return whether the step is the first one of a period, but for the first period."""
        return step > 0 and super().is_sent(sender, step)

    def specs(self, sender: int, of: SpecsOf) -> tuple[Spec, ...]:
        """The parameters of the first block."""
        return of(sender).blocks[0]

    def message(self, sender: Learner, g: Tensor, passed: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        """They are cloned, as the update of this very step changes them."""
        first = next(sender.body.children())
        return tuple(parameter.detach().clone() for parameter in first.parameters())

    def apply(
        self, receiver: Learner, step: Step, kept: Kept | None, arrived: Iterator[Tensor]
    ) -> tuple[()]:
        """Let the head's copy follow; the last module has none."""
        head = parts(receiver.head)[0]
        if isinstance(head, EmaHead):
            head.follow(arrived)
        return ()


@dataclass(frozen=True)
class FromLast(LaggedContent):
    """What the last module begins, and each module on the way sends further in its next step.

    Attributes:
        num_modules: K.
    """

    every: int
    num_modules: int
    lag: int = field(default=LAG, kw_only=True)

    def hops(self, receiver: int) -> int:
        """Return the number of edges between the receiver and the last module."""
        return self.num_modules - 1 - receiver

    def begun(self, sender: int, step: int) -> int:
        """Return the step in which the last module has begun what `sender` may send in `step`."""
        return step - self.hops(sender) * (self.lag + 1)

    def is_between(self, sender: int) -> bool:
        """Return whether it is a module between the first and the last one."""
        return 0 < sender < self.num_modules - 1

    def is_sent(self, sender: int, step: int) -> bool:
        """Return whether the last module has begun it so many hops ago."""
        begun = self.begun(sender, step)
        return sender < self.num_modules and begun >= 0 and super().is_sent(sender, begun)


@dataclass(frozen=True)
class Distillation(FromLast):
    """Distillation: outputs of later heads, from which the receiver's head learns.

    The last module sends its head's part of a batch upstream. Each module on the way learns from
    what comes, and passes it on in the next step: with its own part added, or as it is.

    Attributes:
        together: whether each head on the way adds its part.
    """

    together: bool
    keeps = True

    def is_begun(self, sender: int) -> bool:
        """Return whether it is the last module."""
        return sender == self.num_modules - 1

    def is_passed_on(self, sender: int) -> bool:
        """Return whether it is a module between the first and the last one."""
        return self.is_between(sender)

    def specs(self, sender: int, of: SpecsOf) -> tuple[Spec, ...]:
        """A tensor like the outputs."""
        return (of(sender).part,)

    def message(self, sender: Learner, g: Tensor, passed: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        """The part of the last head; else what has come, or its sum with the sender's part."""
        return passed or (sender.part(),)

    def apply(
        self, receiver: Learner, step: Step, kept: Kept | None, arrived: Iterator[Tensor]
    ) -> tuple[Tensor, ...]:
        """Bring the head's outputs closer to those of its teacher."""
        assert kept is not None, "it keeps what it needs"
        heads = self.num_modules - receiver.index if self.together else 1
        return (receiver.imitate(step, kept, next(arrived), heads),)


@dataclass(frozen=True)
class UnembeddingCopies(FromLast):
    """Copies of the last module's unembedding, which the heads of all others read, or a tied
    embedding in the first one.

    The last module publishes it as after n `every` updates (n = 1, 2, ...). Each other module has
    it after a message's lag, and hands it on in its next step.

    Attributes:
        shared: whether heads have it; else each module keeps it until it hands it on.
    """

    shared: bool = True
    once = True

    def is_passed_on(self, sender: int) -> bool:
        """Return whether it is a module between the first and the last one, whose head has none."""
        return not self.shared and self.is_between(sender)

    def is_sent(self, sender: int, step: int) -> bool:
        """Return whether a publication has come to it in the step before; the first is after an
        update."""
        return self.begun(sender, step) > 0 and super().is_sent(sender, step)

    def specs(self, sender: int, of: SpecsOf) -> tuple[Spec, ...]:
        """The matrix."""
        return of(sender).unembedding

    def message(self, sender: Learner, g: Tensor, passed: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        """It is cloned, as the update of this very step changes it."""
        if passed:
            return passed
        head = cast(HasHidden, parts(sender.head)[0])  # as all heads of such a run
        return (head.weight.detach().clone(),)

    def apply(
        self, receiver: Learner, step: Step, kept: Kept | None, arrived: Iterator[Tensor]
    ) -> tuple[Tensor, ...]:
        """Let the copies of head and embedding follow; the last module has none."""
        weight = tuple(islice(arrived, 1))
        if not weight:
            return weight
        for part in followers(receiver.body, receiver.head):
            if part.follows == "unembedding":
                part.follow(iter(weight))
        return weight


def followers(body: nn.Module, head: nn.Module) -> Iterator[HasCopy]:
    """Return the parts of a module that have a copy: of a block, or of the unembedding."""
    for part in (*body.children(), parts(head)[0]):
        if isinstance(part, HasCopy) and part.copy is not None:
            yield part


def copied_parameters(body: nn.Module, head: nn.Module) -> list[nn.Parameter]:
    """Return the parameters of the copies that a module has."""
    found = [part.copy for part in followers(body, head)]
    return [parameter for copy in found if copy is not None for parameter in copy.parameters()]


def lag_plan(config: Config, num_modules: int, tied: bool = False) -> LagPlan:
    """Return what flows upstream in a run.

    Args:
        config: its configuration.
        num_modules: K.
        tied: whether the network's embedding is its unembedding.
    """
    contents: list[LaggedContent] = []
    if config.reconcile.feeds_back:
        contents.append(Feedback(config.reconcile.every))
    refresh = heads.refresh(config.head)
    shared = refresh > 0 and heads.follows(config.head) == "unembedding"
    if refresh and not shared:
        contents.append(BlockCopies(refresh))
    if shared or tied:
        contents.append(UnembeddingCopies(refresh if shared else TIED_REFRESH, num_modules, shared))
    if config.distill.weight > 0:
        together = config.distill.teacher == "together"
        contents.append(Distillation(config.distill.every, num_modules, together))
    return LagPlan(tuple(contents), num_modules=num_modules)
