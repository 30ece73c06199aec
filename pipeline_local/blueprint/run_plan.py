"""What happens when: steps, evaluations and checkpoints as a pure function of the configuration.

Every rank derives the same run plan alone, so no control message is ever sent.
"""

from collections.abc import Iterator
from dataclasses import dataclass

from pipeline_local.config import Config
from pipeline_local.data.sampler import steps_per_epoch
from pipeline_local.learning.lagged import LagPlan
from pipeline_local.learning.schedule import learning_rate
from pipeline_local.learning.step import Step


@dataclass(frozen=True)
class Evaluate:
    """Score every head on the test set, after `number` optimizer steps."""

    number: int


@dataclass(frozen=True)
class Save:
    """Write a checkpoint, after `number` optimizer steps."""

    number: int


Action = Step | Evaluate | Save


@dataclass(frozen=True)
class RunPlan:
    """The whole run, known before it starts.

    Args:
        config: of the run.
        num_train: training samples; the ragged rest of an epoch is dropped.
        num_test: test samples; the ragged last batch is padded.
    """

    config: Config
    num_train: int
    num_test: int

    @property
    def steps_per_epoch(self) -> int:
        """Full batches in one pass over the training data."""
        return steps_per_epoch(self.num_train, self.config.data.batch_size)

    @property
    def num_steps(self) -> int:
        """Optimizer steps of the whole run."""
        train = self.config.train
        return train.steps or (train.epochs or 0) * self.steps_per_epoch

    @property
    def test_batches(self) -> list[int]:
        """Samples in each batch of one evaluation; the last batch is filled up with padding."""
        size = self.config.data.batch_size
        return [min(size, self.num_test - start) for start in range(0, self.num_test, size)]

    def actions(self, start: int = 0) -> Iterator[Action]:
        """Everything from step `start` on, in order; after the last step, an evaluation."""
        if start >= self.num_steps:
            yield Evaluate(self.num_steps)
        for number in range(start, self.num_steps):
            yield self.step(number)
            if self._due(number, self.config.train.evaluate_every or self.steps_per_epoch):
                yield Evaluate(number + 1)
            if self._due(number, self.config.checkpoint.every_steps):
                yield Save(number + 1)

    def step(self, number: int) -> Step:
        """The optimizer step with this number, counted from 0."""
        reconcile = self.config.reconcile
        due = reconcile.weight > 0 and number % reconcile.every == 0
        log = self._due(number, self.config.train.log_every)
        lag = self.lag
        return Step(
            number=number,
            lr=self.lr(number),
            microbatches=self.config.train.microbatches,
            reconcile=due and reconcile.direction != "upstream",
            compare=(due and reconcile.direction != "upstream") or log,
            log=log,
            send_lagged=lag is not None and lag.is_sent(number),
            apply_lagged=lag is not None and lag.is_applied(number),
        )

    @property
    def lag(self) -> LagPlan | None:
        """When lagged messages flow upstream; None: never."""
        return LagPlan.of(self.config.reconcile)

    @property
    def part_that_compares(self) -> float:
        """Of all steps; counted over at most a thousand."""
        numbers = range(min(self.num_steps, 1000))
        return sum(self.step(number).compare for number in numbers) / len(numbers)

    @property
    def most_pending(self) -> int:
        """Lagged messages that may be on their way upstream at once; 0 if none ever are."""
        return self.lag.most_pending * self.config.train.microbatches if self.lag else 0

    def lr(self, number: int) -> float:
        """The learning rate of a step: warm-up, then `optimizer.schedule`."""
        return learning_rate(self.config.optimizer, number, self.num_steps)

    def explain(self) -> str:
        """One line for people: how long the run is, and why."""
        data, train = self.config.data, self.config.train
        epochs = (
            f"{train.epochs} epochs of {self.steps_per_epoch}" if train.epochs else "train.steps"
        )
        every = train.evaluate_every or self.steps_per_epoch
        return (
            f"{self.num_steps} steps ({epochs}), {data.batch_size} of {self.num_train} samples"
            f" each; evaluation every {every} steps"
        )

    def _due(self, number: int, every: int | None) -> bool:
        """After every n-th step, and after the last."""
        last = number + 1 == self.num_steps
        return last or (every is not None and (number + 1) % every == 0)
