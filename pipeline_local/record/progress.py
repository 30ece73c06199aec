"""The progress of a run in a file: a line per logged step, from what every stage has set in the
store. On a terminal `live.py` shows it."""

import time
from collections.abc import Callable
from functools import partial

from pipeline_local.blueprint.run_plan import RunPlan
from pipeline_local.console.screen import say
from pipeline_local.learning.tasks import Task
from pipeline_local.user_input.json_text import Facts


class Course:
    """How far a run is, and how long it takes from now on.

    Args:
        run_plan: says how long the run is.
        start: the steps done before.
    """

    def __init__(self, run_plan: RunPlan, start: int) -> None:
        self.num_steps = run_plan.num_steps
        self._steps_per_epoch = run_plan.steps_per_epoch
        self._start = start
        self._begin = time.monotonic()

    def epoch(self, step: int) -> str:
        """Returns the epochs done, of all."""
        done, all_ = (count / self._steps_per_epoch for count in (step, self.num_steps))
        return f"epoch {done:.1f}/{all_:.3g}" if all_ >= 1 else f"epoch {done:.2f}/{all_:.2f}"

    def left(self, step: int) -> str:
        """Returns the time left, if the steps to come take as long as those of this run so far."""
        seconds = time.monotonic() - self._begin
        remaining = seconds * (self.num_steps - step) / max(1, step - self._start)
        return f"{_duration(remaining)} left"


def _duration(seconds: float) -> str:
    """Such as 0:42, 12:05 or 3:07:00."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


class Progress:
    """Adds a line for each logged step.

    Args:
        course: of the run.
        num_modules: the modules of all stages.
        task: the task, which knows how its score is displayed.
    """

    def __init__(self, course: Course, num_modules: int, task: Task) -> None:
        self._task = task
        self._course = course
        self._num_modules = num_modules

    def announce(self, lines: list[str]) -> None:
        """Prints what is about to run."""
        say("\n".join(lines))

    def show(self, stages: list[Facts], tests: list[Facts]) -> None:
        """Shows the latest facts of all stages, of a training step and of an evaluation."""
        if stages:
            say(self.line(stages, tests))

    def close(self) -> None:
        """Does nothing: every line is complete."""

    def line(self, stages: list[Facts], tests: list[Facts]) -> str:
        """Returns the text: step of the first stage, pace, time left, and what each module has.

        Stages further downstream are behind: each module's values are the newest that it has
        reported, "-" where it has reported none, and the title names the earliest step of them.
        """
        behind, tested = min(facts["step"] for facts in stages), [facts["step"] for facts in tests]
        loss = "loss" if behind == stages[0]["step"] else f"loss (from step {behind} on)"
        metric = self._task.metric
        score = f"{metric} (step {min(tested, default=0)})"
        step = stages[0]["step"]
        columns = [
            f"step {step}/{self._course.num_steps}",
            self._course.epoch(step),
            self._task.rate_text(stages[0]["samples_per_second"]),
            self._course.left(step),
            self._per_module(stages, "loss", "{:.3f}".format, loss),
            self._per_module(stages, "cosine", "{:+.2f}".format, "cosine"),
            self._per_module(tests, metric, partial(self._task.score_text, digits=1), score),
        ]
        return "  ".join(column for column in columns if column)

    def _per_module(
        self, stages: list[Facts], name: str, text: Callable[[float], str], title: str
    ) -> str:
        rows = by_module(stages)
        shown = {k: text(row[name]) for k, row in rows.items() if name in row}
        values = [shown.get(k + 1, "-") for k in range(self._num_modules)]
        return f"{title} {' '.join(values)}" if shown else ""


def by_module(stages: list[Facts]) -> dict[int, Facts]:
    """Returns what the stages say of each module, by its number (from 1)."""
    return {int(k): row for facts in stages for k, row in facts["modules"].items()}


class Quiet:
    """Shows what is about to run, and nothing while it does (`run.quiet`)."""

    def announce(self, lines: list[str]) -> None:
        """Prints what is about to run, or how it has ended."""
        say("\n".join(lines))

    def show(self, stages: list[Facts], tests: list[Facts]) -> None:
        """Shows nothing."""

    def close(self) -> None:
        """Does nothing."""


class Silent:
    """The display of all ranks but the first."""

    def announce(self, lines: list[str]) -> None:
        """Prints nothing."""

    def show(self, stages: list[Facts], tests: list[Facts]) -> None:
        """Shows nothing."""

    def close(self) -> None:
        """Does nothing."""
