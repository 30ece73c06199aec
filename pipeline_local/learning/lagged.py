"""Lagged messages: tensors sent upstream, which are applied a fixed number of steps later.

So no module waits for them within a step, and no placement changes their effect. The plan
(lag_plan.py) says when there are some, and what they hold. What several contents have to say with
one microbatch travels as one message. Modules, stages, edges, contracts, checkpoints and dry runs
know none of the contents.

A module keeps what it needs once the message from downstream has arrived (`awaiting`), what it has
got and passes on in the next step (`passing`), and the messages it has sent that upstream has not
applied yet (`pending`). All are part of a checkpoint, so that a resumed run finds the messages that
were in flight.
"""

from collections.abc import Mapping, Sequence
from itertools import islice

from torch import Tensor

from pipeline_local.engines.replicas import Replicas
from pipeline_local.learning.lag_plan import LaggedContent, LagPlan, Learner
from pipeline_local.learning.lagged_queue import LaggedQueue
from pipeline_local.learning.step import Step


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
        self.pending.drop(step - self._plan.steps)

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
