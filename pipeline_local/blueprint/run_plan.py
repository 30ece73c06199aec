"""The run plan: steps, evaluations and checkpoints as a pure function of the configuration.

Every rank derives the same run plan alone, so no control message is ever sent.
"""

from collections.abc import Container, Iterator
from dataclasses import dataclass
from pathlib import Path

from pipeline_local.config import Config
from pipeline_local.data.sampler import steps_per_epoch
from pipeline_local.engines.schedule import learning_rate
from pipeline_local.errors import UserError, counted
from pipeline_local.learning.contents import lag_plan
from pipeline_local.learning.lag_plan import LagPlan
from pipeline_local.learning.step import Step


@dataclass(frozen=True)
class Evaluate:
    """The action that scores every head on the test set, after `number` optimizer steps."""

    number: int


@dataclass(frozen=True)
class Save:
    """The action that writes a checkpoint, after `number` optimizer steps."""

    number: int


Action = Step | Evaluate | Save
"""One action of a run plan."""


def microbatch_size(config: Config) -> int:
    """The samples in each microbatch of training."""
    return config.data.batch_size // config.train.microbatches


@dataclass(frozen=True)
class RunPlan:
    """All actions of a run, known before it starts.

    Args:
        config: the configuration of the run.
        num_train: the number of training samples; an incomplete last batch is dropped.
        num_test: the number of test samples; an incomplete last batch is padded.
        num_modules: K.
        tied: whether the network's embedding is its unembedding.
    """

    config: Config
    num_train: int
    num_test: int
    num_modules: int = 1
    tied: bool = False

    @property
    def steps_per_epoch(self) -> int:
        """The full batches in one pass over the training data."""
        return steps_per_epoch(self.num_train, self.config.data.batch_size)

    @property
    def num_steps(self) -> int:
        """The optimizer steps of the whole run."""
        train = self.config.train
        if train.tokens:
            return -(-train.tokens // self._tokens_per_step)
        return train.steps or (train.epochs or 0) * self.steps_per_epoch

    @property
    def _tokens_per_step(self) -> int:
        """Of data that are sequences of tokens."""
        data = self.config.data
        return data.batch_size * int(data.args["sequence_length"])

    @property
    def test_batches(self) -> list[int]:
        """The samples in each batch of one evaluation; the last batch is filled up with padding."""
        size = self.config.data.batch_size
        return [min(size, self.num_test - start) for start in range(0, self.num_test, size)]

    def actions(self, start: int = 0) -> Iterator[Action]:
        """Yields all actions from step `start` on, in order; after the last step, an evaluation,
        and before that a checkpoint: whatever fails in it, the training is not lost."""
        for number in range(start, self.num_steps - 1):
            yield self.step(number)
            if self._due(number, self._evaluate_every):
                yield Evaluate(number + 1)
            if self.is_saved(number + 1):
                yield Save(number + 1)
        if start < self.num_steps:
            yield self.step(self.num_steps - 1)
            yield Save(self.num_steps)
        yield Evaluate(self.num_steps)

    def is_saved(self, steps: int) -> bool:
        """Whether there is a checkpoint after so many optimizer steps."""
        return self._due(steps - 1, self.config.checkpoint.every_steps or self._evaluate_every)

    def bare_evaluation(self, done: int) -> int | None:
        """The first step after `done` ones whose evaluation has no checkpoint beside it; None: all
        have one."""
        every = self._evaluate_every
        coming = range((done // every + 1) * every, self.num_steps, every)
        return next((step for step in coming if not self.is_saved(step)), None)

    @property
    def _evaluate_every(self) -> int:
        return self.config.train.evaluate_every or self.steps_per_epoch

    def refuse_shorter(self, done: int) -> None:
        """Refuses to resume a run that has done more optimizer steps than the whole run has.

        Raises:
            UserError: it has.
        """
        if done > self.num_steps:
            raise UserError(
                f"{self._length}: {counted(self.num_steps, 'step is', 'steps are')} fewer than"
                f" the {done} that are done;"
                f" raise it, or name another run.dir"
            )

    def refuse_late_trace(self) -> None:
        """Refuses to record steps that the run does not have.

        Raises:
            UserError: all of `trace.steps` come after its end.
        """
        steps = self.config.trace.steps
        if steps is not None and steps[0] > self.num_steps:
            raise UserError(
                f"trace.steps: the run ends with step {self.num_steps}, got {list(steps)}; name"
                f" earlier ones"
            )

    def stand(self, done: int) -> str:
        """Returns what follows a resumed run's number of steps, for display."""
        if not 0 < done < self.num_steps:
            return ""
        epochs = self.config.train.epochs
        whole = counted(epochs or 0, "epoch")
        passed = f" ({done / self.steps_per_epoch:.3g} of {whole})" if epochs else ""
        return (
            f": {self.num_steps - done} of {counted(self.num_steps, 'step')} to go{passed}, the"
            f" next with learning rate {self.lr(done):.3g}"
        )

    @property
    def _length(self) -> str:
        train = self.config.train
        return next(f"train.{k}" for k in ("epochs", "tokens", "steps") if getattr(train, k))

    def complete(self, place: Path) -> str:
        """Returns one line for display: nothing is left to do in a run folder."""
        steps = counted(self.num_steps, "step")
        return f"{place} is complete after {steps}; raise {self._length} to go on"

    def step(self, number: int) -> Step:
        """Returns the optimizer step with this number, counted from 0."""
        reconcile = self.config.reconcile
        due = reconcile.weight > 0 and number % reconcile.every == 0
        log = self._due(number, self.config.train.log_every)
        return Step(
            number=number,
            lr=self.lr(number),
            microbatches=self.config.train.microbatches,
            reconcile=due and reconcile.direction != "upstream",
            compare=(due and reconcile.direction != "upstream") or log,
            log=log,
        )

    @property
    def lag(self) -> LagPlan:
        """When lagged messages are sent and applied, and what they hold."""
        return lag_plan(self.config, self.num_modules, self.tied)

    @property
    def compare_fraction(self) -> float:
        """The fraction of steps that compare gradients, over at most the first thousand steps."""
        numbers = range(min(self.num_steps, 1000))
        return sum(self.step(number).compare for number in numbers) / len(numbers)

    @property
    def most_pending(self) -> int:
        """The most lagged messages that may be on their way upstream at once; 0 without any.

        A channel must hold as many. Else a stage would wait until its message is applied, and keep
        its upstream neighbour from reaching the step that applies it.
        """
        lag, microbatches = self.lag, self.config.train.microbatches
        return sum(lag.most_pending(content, microbatches) for content in lag.contents)

    def under_way(self, sender: int, steps: int, own: Container[int] | None = None) -> int:
        """The lagged messages that module `sender` (from 0) has on its way after so many steps.

        Args:
            sender: of the messages.
            steps: done so far.
            own: the microbatches that count; None: all.
        """
        found = self.lag.under_way(sender, steps, self.config.train.microbatches)
        return len([part for _, part in found if own is None or part in own])

    def lr(self, number: int) -> float:
        """The learning rate of a step: warm-up, then `optimizer.schedule`."""
        return learning_rate(self.config.optimizer, number, self.num_steps)

    def explain(self) -> str:
        """Returns one line for display: how long the run is, and why."""
        data, train = self.config.data, self.config.train
        why = self._length
        if train.epochs:
            why = f"{counted(train.epochs, 'epoch')} of {self.steps_per_epoch}"
        return (
            f"{counted(self.num_steps, 'step')} ({why}), {data.batch_size} of"
            f" {counted(self.num_train, 'sample')} each; evaluation every"
            f" {counted(self._evaluate_every, 'step')}"
        )

    def _due(self, number: int, every: int | None) -> bool:
        """Whether something is due after every n-th step, and after the last one."""
        last = number + 1 == self.num_steps
        return last or (every is not None and (number + 1) % every == 0)
