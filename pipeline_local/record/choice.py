"""Which heads predict together: a pure function of what a run has recorded."""

from collections.abc import Sequence
from dataclasses import dataclass
from math import nan

from pipeline_local.learning.tasks import Task
from pipeline_local.record import history, summary
from pipeline_local.record.folder import RunFolder
from pipeline_local.user_input.json_text import Facts


@dataclass(frozen=True)
class HeadChoice:
    """The heads whose outputs are put together, and why.

    Attributes:
        heads: the numbers of their modules, from 1, upstream first.
        reason: what the run has recorded about them.
    """

    heads: tuple[int, ...]
    reason: str

    def __str__(self) -> str:
        first, last = self.heads[0], self.heads[-1]
        name = f"head {last} alone" if first == last else f"heads {first} to {last} together"
        return f"{name}: {self.reason}"


def chosen_heads(folder: RunFolder, step: int, count: int, task: Task) -> HeadChoice:
    """The heads that predict best, by the run's latest evaluation before or at a checkpoint.

    Args:
        folder: of the run.
        step: of the checkpoint.
        count: the modules of the run.
        task: the task, which knows its metric.
    """
    if (found := _evaluation(folder, step, count)) is None:
        return HeadChoice((count,), "the run has recorded no evaluation of all heads")
    return choose(found[1], found[0], task)


def choose(rows: Sequence[Facts], step: int, task: Task) -> HeadChoice:
    """The last head alone or the first k heads together, whichever has the best metric.

    Early heads may be so weak that all heads together are far worse than the last one. Of equal
    ones the last head alone is taken, then fewer heads.

    Args:
        rows: per head, the metric alone and together with all upstream heads, as an evaluation has
            recorded them; None where it was not finite.
        step: of that evaluation.
        task: the task, which knows its metric and whether higher is better.
    """
    last, sign = len(rows), 1 if task.better == "higher" else -1
    if f"ensemble_{task.metric}" not in rows[-1]:  # a program's own, whose direction is not known
        return HeadChoice((last,), f"the run has not recorded the {task.metric} of heads together")
    scores: dict[tuple[int, ...], float | None] = {(last,): rows[-1][task.metric]}
    for k, row in enumerate(rows, start=1):
        scores.setdefault(tuple(range(1, k + 1)), row[f"ensemble_{task.metric}"])
    known = {heads: score for heads, score in scores.items() if score is not None}
    if not known:
        return HeadChoice((last,), f"no {task.metric} of step {step} is finite")
    best = max(known, key=lambda heads: sign * known[heads])  # the first one of equal ones
    every = tuple(range(1, last + 1))
    told = {"": best, f"head {last} alone": (last,), "all heads": every}
    others = [
        f"{name} {task.score_text(known[heads])}"
        for name, heads in told.items()
        if heads in known and (not name or (heads != best and last > 1))
    ]
    metric = task.metric.replace("_", " ")
    return HeadChoice(best, f"{metric}{', '.join(others)} after step {step}")


def recorded(folder: RunFolder, step: int, count: int) -> Facts:
    """The lists per head, as in a summary, of the run's latest evaluation before or at a step;
    empty without any.

    Args:
        folder, step, count: as for `chosen_heads`.
    """
    found = _evaluation(folder, step, count)
    rows = found[1] if found else []
    return summary.per_head([{k: nan if v is None else v for k, v in r.items()} for r in rows])


def _evaluation(folder: RunFolder, step: int, count: int) -> tuple[int, list[Facts]] | None:
    """The step and the rows of the latest evaluation up to a step, of all modules."""
    rows: dict[int, dict[str, Facts]] = {}
    for facts in history.evaluations(folder):
        if facts["step"] <= step:
            rows.setdefault(facts["step"], {}).update(facts["modules"])
    numbers = [str(k) for k in range(1, count + 1)]
    complete = [at for at, modules in rows.items() if modules.keys() >= {*numbers}]
    return (max(complete), [rows[max(complete)][k] for k in numbers]) if complete else None
