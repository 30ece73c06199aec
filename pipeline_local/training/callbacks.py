"""Callbacks: what a program wants to do at the points of the run plan, on every rank.

A rank has the modules of its own stage. What a callback does there must not depend on anything that
the others cannot know, apart from `Run.stop`, which all ranks follow after the same step.
"""

import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from math import nan
from pathlib import Path
from typing import Literal, get_args

from torch import Tensor, nn

from pipeline_local import atomic
from pipeline_local.blueprint.run_plan import RunPlan
from pipeline_local.config import Config
from pipeline_local.errors import UserError
from pipeline_local.learning.module import LocalModule
from pipeline_local.models.backbone import Block
from pipeline_local.models.weights import model_state
from pipeline_local.record import history
from pipeline_local.record.checkpoint import Checkpoints
from pipeline_local.record.folder import RunFolder
from pipeline_local.user_input.json_text import Facts

Better = Literal["higher", "lower"]
"""Which scores are better."""
_BEST = "best.json"


@dataclass(frozen=True)
class Run:
    """What a callback sees of the run, on one rank.

    Attributes:
        config: the resolved configuration.
        folder: the run folder, which all ranks share.
        modules: those of this stage, in order; `module.index` counts from 0.
        parts: the network's blocks of this stage, each with the module that holds its weights.
        rank: of this process; without replicas, its stage has the same number.
        replica: of this stage, from 0. All replicas call the same points with the same scores: what
            is written once belongs to replica 0.
        is_last: whether this stage has the last module, whose head is the network's own.
        metric: name of the task's score.
        better: "higher" or "lower": which scores are better.
        plan: the order of steps, evaluations and checkpoints.
        checkpoints: those of the run.
        stop: asks all ranks to end after the same step, soon; they save, and sum up what the last
            evaluation said, if there was one.
    """

    config: Config
    folder: Path
    modules: Sequence[LocalModule]
    parts: Sequence[tuple[Block, nn.Module]]
    rank: int
    replica: int
    is_last: bool
    metric: str
    better: Better
    plan: RunPlan
    checkpoints: Checkpoints
    stop: Callable[[], None]

    def is_saved(self, step: int) -> bool:
        """Whether the run plan has a checkpoint after so many steps."""
        return self.plan.is_saved(step)

    def keep(self, name: str, step: int) -> None:
        """Keep the checkpoint of a step for good, under a name, as for `load(run, step=name)`. One
        of this evaluation's step may still be to come. A name that is in use moves.

        Raises:
            UserError: the name is no plain word, or the step has no checkpoint.
        """
        there = self.checkpoints.steps()
        newest = max(there, default=0)
        is_number = isinstance(step, int) and not isinstance(step, bool)
        to_come = is_number and newest < step <= self.plan.num_steps and self.is_saved(step)
        if not is_number or not (step in there or to_come):
            raise UserError(
                f"keep: there is no checkpoint of step {step!r}; name a step that has one"
                f" (run.is_saved says which will)"
            )
        self.checkpoints.keep(name, step)

    def state(self) -> dict[str, Tensor]:
        """Copies of the network's weights and buffers of this stage, by the network's own names, on
        the CPU; those of all stages together are its state dict."""
        return {name: value.clone() for name, value in model_state(self.parts).items()}


class Callback:
    """Does nothing at any point; inherit, and define what you need. Steps count from 1.

    With several stages each rank has a copy of its own, in a process of its own: what it is to
    leave behind belongs into the run folder.

    Example:
        >>> class Losses(Callback):
        ...     def on_log(self, run, facts):
        ...         losses = [module["loss"] for module in facts["modules"].values()]
        ...         with (run.folder / f"losses-{run.rank}.txt").open("a") as file:
        ...             print(facts["step"], *losses, file=file)
        >>> summary = fit(model, (x, y), (x, y), epochs=1, callbacks=[Losses()])
    """

    def on_start(self, run: Run, step: int) -> None:
        """Before the first step: the modules are as after `step` steps, more than 0 if resumed."""

    def on_step(self, run: Run, step: int) -> None:
        """After an optimizer step of this stage."""

    def on_log(self, run: Run, facts: Facts) -> None:
        """After a logged step: the line of `metrics/stage-*.jsonl`."""

    def on_evaluation(self, run: Run, step: int, scores: dict[str, dict[str, float]]) -> None:
        """After an evaluation: the scores of each module of this stage, by its number."""

    def on_checkpoint(self, run: Run, step: int) -> None:
        """After a checkpoint of this stage was begun."""

    def on_end(self, run: Run, facts: Facts) -> None:
        """At the end: what summary.json holds, on every rank."""


def listed(callbacks: Iterable[Callback]) -> tuple[Callback, ...]:
    """Return what a program has handed in, in order.

    Raises:
        UserError: one of them is no instance of `Callback`, or they are no list.
    """
    found = tuple(callbacks) if isinstance(callbacks, Iterable) else (callbacks,)
    odd = [each for each in found if not isinstance(each, Callback)]
    if odd or not isinstance(callbacks, Iterable):
        raise UserError(
            f"callbacks: pass instances of Callback, got {(*odd, callbacks)[0]!r}; put them into a"
            f" list"
        )
    return found


class Callbacks(Callback):
    """Calls several callbacks at each point, in order.

    Args:
        callbacks: those that are called.
    """

    def __init__(self, callbacks: Sequence[Callback]) -> None:
        self._callbacks = callbacks

    def on_start(self, run: Run, step: int) -> None:
        """Call all."""
        for callback in self._callbacks:
            callback.on_start(run, step)

    def on_step(self, run: Run, step: int) -> None:
        """Call all."""
        for callback in self._callbacks:
            callback.on_step(run, step)

    def on_log(self, run: Run, facts: Facts) -> None:
        """Call all."""
        for callback in self._callbacks:
            callback.on_log(run, facts)

    def on_evaluation(self, run: Run, step: int, scores: dict[str, dict[str, float]]) -> None:
        """Call all."""
        for callback in self._callbacks:
            callback.on_evaluation(run, step, scores)

    def on_checkpoint(self, run: Run, step: int) -> None:
        """Call all."""
        for callback in self._callbacks:
            callback.on_checkpoint(run, step)

    def on_end(self, run: Run, facts: Facts) -> None:
        """Call all."""
        for callback in self._callbacks:
            callback.on_end(run, facts)


class EarlyStopping(Callback):
    """Ends the run when the last head's score has not improved for some evaluations.

    Args:
        patience: evaluations without improvement, from 1.
        better: "higher" or "lower", for a metric of one's own; None: as the task says.

    Raises:
        UserError: one of them is something else.

    Example:
        >>> summary = fit(model, (x, y), (x, y), epochs=9, callbacks=[EarlyStopping(patience=2)])
    """

    def __init__(self, patience: int = 3, better: Better | None = None) -> None:
        if isinstance(patience, bool) or not isinstance(patience, int) or patience < 1:
            raise UserError(
                f"EarlyStopping: patience must be a whole number of evaluations from 1, got"
                f" {patience!r}; change it"
            )
        _check_better("EarlyStopping", better)
        self._patience, self._better = patience, better
        self._best: float | None = None
        self._waited = 0

    def on_start(self, run: Run, step: int) -> None:
        """Go on from the evaluations of a run that is resumed."""
        self._best, self._waited = None, 0
        if not run.is_last or not step:
            return
        for score in _recorded(run, step):
            self._compare(run, score)
        self._stop_if_due(run)

    def on_evaluation(self, run: Run, step: int, scores: dict[str, dict[str, float]]) -> None:
        """Compare with the best so far; only the last stage does."""
        if not run.is_last:
            return
        self._compare(run, last_score(run, scores))
        self._stop_if_due(run)

    def _compare(self, run: Run, score: float) -> None:
        if _improves(score, self._best, self._better or run.better):
            self._best, self._waited = score, 0
        else:
            self._waited += 1

    def _stop_if_due(self, run: Run) -> None:
        if self._waited >= self._patience:
            run.stop()


class BestCheckpoint(Callback):
    """Keeps the checkpoint with the last head's best score: `load(run, step="best")`.

    There must be a checkpoint wherever there is an evaluation, as there is by default. The step and
    its score also stand in `best.json` of the run folder.

    Args:
        better: "higher" or "lower", for a metric of one's own; None: as the task says.

    Raises:
        UserError: it is something else.

    Example:
        >>> summary = fit(
        ...     model, (x, y), (x, y), epochs=2, run_dir="runs/best", callbacks=[BestCheckpoint()]
        ... )
        >>> network = load("runs/best", model, step="best")
    """

    def __init__(self, better: Better | None = None) -> None:
        _check_better("BestCheckpoint", better)
        self._better = better
        self._best: float | None = None

    def on_start(self, run: Run, step: int) -> None:
        """Go on from the best of a run that is resumed; one that comes later is not its own.

        Raises:
            UserError: there will be an evaluation without a checkpoint.
        """
        if (bare := run.plan.bare_evaluation(step)) is not None:
            raise UserError(
                f"BestCheckpoint: no checkpoint follows the evaluation after step {bare}; give"
                f" train.evaluate_every and checkpoint.every_steps the same number of steps"
            )
        file = run.folder / _BEST
        best = json.loads(file.read_text()) if step and file.is_file() else None
        self._best = best.get(run.metric) if best and best["step"] <= step else None

    def on_evaluation(self, run: Run, step: int, scores: dict[str, dict[str, float]]) -> None:
        """Name the checkpoint of this step if it is the best so far."""
        if not run.is_last or run.replica:
            return
        score = last_score(run, scores)
        if _improves(score, self._best, self._better or run.better):
            self._best = score
            run.keep("best", step)
            best = json.dumps({"step": step, run.metric: score})
            atomic.write_text(run.folder / _BEST, best + "\n")


def last_score(run: Run, scores: dict[str, dict[str, float]]) -> float:
    """The score of the stage's last head."""
    return scores[str(run.modules[-1].index + 1)][run.metric]


def _recorded(run: Run, step: int) -> list[float]:
    """The last head's score in each evaluation up to a step, as metrics say.

    Where the run has gone back to an earlier checkpoint, what came after that one does not count,
    nor do evaluations by another metric.
    """
    number, found = str(run.modules[-1].index + 1), dict[int, float]()
    for facts in history.evaluations(RunFolder(run.folder)):
        if row := facts["modules"].get(number):
            found = {at: earlier for at, earlier in found.items() if at < facts["step"]}
            if run.metric in row:
                score = row[run.metric]
                found[facts["step"]] = nan if score is None else score
    return [score for at, score in found.items() if at <= step]


def _check_better(who: str, better: object) -> None:
    if better is not None and better not in get_args(Better):
        raise UserError(
            f"{who}: better must be 'higher' or 'lower', got {better!r}; or leave it out, as the"
            f" task says"
        )


def _improves(score: float, best: float | None, better: Better) -> bool:
    """A score that is not a number never does."""
    if best is None:
        return score == score
    return score > best if better == "higher" else score < best
