"""Callbacks: what a program wants to do at the points of the run plan, on every rank.

A rank has the modules of its own stage. What a callback does there must not depend on anything that
the others cannot know, apart from `Run.stop`, which all ranks follow after the same step.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline_local.config import Config
from pipeline_local.learning.module import LocalModule

Facts = dict[str, Any]


@dataclass(frozen=True)
class Run:
    """What a callback sees of the run, on one rank.

    Attributes:
        config: the resolved configuration.
        folder: the run folder, which all ranks share.
        modules: those of this stage, in order; `module.index` counts from 0.
        rank: of this process; its stage has the same number.
        is_last: whether this stage has the last module, whose head is the network's own.
        metric: name of the task's score.
        better: "higher" or "lower": which scores are better.
        stop: asks all ranks to end after the same step, soon; they save, and sum up what the last
            evaluation said.
        keep: keeps the checkpoint of a step for good, under a name.
    """

    config: Config
    folder: Path
    modules: Sequence[LocalModule]
    rank: int
    is_last: bool
    metric: str
    better: str
    stop: Callable[[], None]
    keep: Callable[[str, int], None]


class Callback:
    """Does nothing at any point; inherit, and define what you need. Steps count from 1."""

    def on_step(self, run: Run, step: int) -> None:
        """After an optimizer step of this stage."""

    def on_log(self, run: Run, facts: Facts) -> None:
        """After a logged step: the line of `metrics/stage-*.jsonl`."""

    def on_evaluation(self, run: Run, step: int, scores: dict[str, dict[str, float]]) -> None:
        """After an evaluation: the scores of each module of this stage, by its number."""

    def on_checkpoint(self, run: Run, step: int) -> None:
        """After a checkpoint of this stage was begun."""

    def on_end(self, run: Run, facts: Facts) -> None:
        """At the end: on the first rank what summary.json holds, on others this stage's part."""


class EarlyStopping(Callback):
    """Ends the run when the last head's score has not improved for some evaluations.

    Args:
        patience: evaluations without improvement.
    """

    def __init__(self, patience: int = 3) -> None:
        self._patience = patience
        self._best: float | None = None
        self._waited = 0

    def on_evaluation(self, run: Run, step: int, scores: dict[str, dict[str, float]]) -> None:
        """Compare with the best so far; only the last stage does."""
        if not run.is_last:
            return
        score = last_score(run, scores)
        if is_better(run, score, self._best):
            self._best, self._waited = score, 0
            return
        self._waited += 1
        if self._waited >= self._patience:
            run.stop()


class BestCheckpoint(Callback):
    """Keeps the checkpoint with the last head's best score: `load(run, step="best")`.

    Needs checkpoints where there are evaluations (`checkpoint.every_steps`).
    """

    def __init__(self) -> None:
        self._best: float | None = None

    def on_evaluation(self, run: Run, step: int, scores: dict[str, dict[str, float]]) -> None:
        """Name the checkpoint of this step if it is the best so far."""
        if run.is_last and is_better(run, last_score(run, scores), self._best):
            self._best = last_score(run, scores)
            run.keep("best", step)


def last_score(run: Run, scores: dict[str, dict[str, float]]) -> float:
    """The score of the stage's last head."""
    return scores[str(run.modules[-1].index + 1)][run.metric]


def is_better(run: Run, score: float, best: float | None) -> bool:
    """Whether a score is better than the best so far, if there is one."""
    if best is None:
        return True
    return score > best if run.better == "higher" else score < best
