"""The results of a run: gathered from all stages, written once, shown as a table."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from rich.table import Table

from pipeline_local import atomic
from pipeline_local.console.screen import Screen, new_table
from pipeline_local.errors import counted
from pipeline_local.learning.tasks import Task
from pipeline_local.record.metrics import writing
from pipeline_local.user_input.json_text import Facts, as_json

_MEMORY = {
    "process": "a process of at most {} per stage (with Python and torch)",
    "tensors": "peak memory of at most {} per stage (tensors)",
}


@dataclass(frozen=True)
class ModuleRow:
    """One module's row of the table.

    Attributes:
        stage: the number of its stage.
        blocks: the names of its first and last block.
        head: the name of its head.
    """

    stage: int
    blocks: str
    head: str


@dataclass(frozen=True)
class StageTimes:
    """How long each stage computes per step, as a profile predicts it.

    Attributes:
        predicted: seconds that each stage computes in an average step.
        steps: the steps done since the start, or since the run was resumed.
    """

    predicted: Sequence[float]
    steps: int


def of_stage(replicas: list[Facts]) -> Facts:
    """Combines the final facts of a stage's replicas into one: of each time, that of the slowest;
    of memory, the most."""
    largest = ("seconds", "peak_memory_bytes", "checkpoint_stall_seconds")
    least = {"waited": min(facts["waited"] for facts in replicas)}
    return replicas[0] | least | {name: max(facts[name] for facts in replicas) for name in largest}


def combine(stages: list[Facts], samples: int, plan: StageTimes | None = None) -> Facts:
    """Combines the final facts of all stages, in order, into one summary.

    Args:
        stages: each with `modules` (number -> what `per_head` lists), `steps`, `resumed_after`
            (the steps done before), `seconds` (of training since), `waited` (seconds of those
            spent waiting for neighbours), `peak_memory_bytes` (of what `memory_of` says) and
            `checkpoint_stall_seconds`.
        samples: the training samples seen.
        plan: the predicted times, if there is a profile.
    """
    modules = {int(k): row for facts in stages for k, row in facts["modules"].items()}
    rows = [modules[k] for k in sorted(modules)]
    seconds = max(facts["seconds"] for facts in stages)
    busy = max(facts["seconds"] - facts["waited"] for facts in stages)
    return {
        **per_head(rows),
        "steps": stages[0]["steps"],
        "resumed_after": stages[0]["resumed_after"],
        "seconds": round(seconds, 3),
        "samples_per_second": round(samples / max(seconds, 1e-9), 2),
        "efficiency": round(busy / max(seconds, 1e-9), 4),
        "peak_memory_bytes": [facts["peak_memory_bytes"] for facts in stages],
        "memory_of": stages[0]["memory_of"],
        "checkpoint_stall_seconds": round(
            max(facts["checkpoint_stall_seconds"] for facts in stages), 3
        ),
        **(_beside(stages, plan) if plan else {}),
    }


def per_head(rows: Sequence[Facts]) -> Facts:
    """Returns lists in the order of the modules: `loss`, the task's metric (`accuracy`), and the
    metric of each head together with all upstream heads (`ensemble_accuracy`)."""
    return {name: [row[name] for row in rows] for name in (rows[0] if rows else ())}


def _beside(stages: list[Facts], plan: StageTimes) -> Facts:
    """Returns the seconds that each stage computes per step, measured and predicted."""
    steps = max(1, plan.steps)
    return {
        "stage_seconds": [round((f["seconds"] - f["waited"]) / steps, 6) for f in stages],
        "predicted_stage_seconds": [round(seconds, 6) for seconds in plan.predicted],
    }


def write(summary: Facts, path: Path) -> None:
    """Writes summary.json; it appears complete or not at all.

    Raises:
        UserError: it cannot be written.
    """
    with writing(path):
        atomic.write_text(path, as_json(summary, indent=2) + "\n")


def show_modules(rows: list[ModuleRow]) -> None:
    """Prints a table of what each module is."""
    table = new_table()
    for column in ("module", "stage", "blocks", "head"):
        table.add_column(column, justify="right" if column in ("module", "stage") else "left")
    for index, row in enumerate(rows):
        table.add_row(str(index + 1), str(row.stage), row.blocks, row.head)
    Screen().print(table)


def show(rows: list[ModuleRow], facts: Facts, task: Task, last: str = "") -> None:
    """Prints a table of the score per head, and the run's time and memory if `facts` has them.

    Args:
        rows: what each module is.
        facts: the results.
        task: the task, which knows how its score is displayed.
        last: a sentence below; empty: none.
    """
    console = Screen()
    if task.metric in facts:
        console.print(_scores(rows, facts, task))
    else:
        console.sentence("no evaluation came before the end: there are no scores")
    if "seconds" in facts:
        memory = f"{max(facts['peak_memory_bytes']) / 2**20:.0f} MiB"
        before = facts.get("resumed_after", 0)
        done = f"{facts['steps'] - before} of " if before else ""
        console.sentence(
            f"{done}{counted(facts['steps'], 'step')} in {facts['seconds']:.1f} s,"
            f" {task.rate_text(facts['samples_per_second'])},"
            f" pipeline efficiency {facts['efficiency']:.2f},"
            f" {_MEMORY[facts['memory_of']].format(memory)}"
        )
    if "predicted_stage_seconds" in facts:
        pairs = zip(facts["stage_seconds"], facts["predicted_stage_seconds"], strict=True)
        times = ", ".join(f"{1000 * took:.1f} ({1000 * plan:.1f})" for took, plan in pairs)
        console.sentence(f"ms per step that each stage computes (predicted): {times}")
    if last:
        console.sentence(last)


def _scores(rows: list[ModuleRow], facts: Facts, task: Task) -> Table:
    """Returns a table of the score per head."""
    table = new_table("Test set, per head")
    metric = task.metric
    title = metric.replace("_", " ")
    shown = [name for name in task.shown if name in facts]
    more = [name.replace("_", " ") for name in shown]
    for column in ("module", "stage", "blocks", "head", title, "ensemble", *more, "loss"):
        justify: Literal["left", "right"] = "left" if column in ("blocks", "head") else "right"
        table.add_column(column, justify=justify)
    scores, others = (metric, f"ensemble_{metric}"), (*shown, "loss")
    for index, row in enumerate(rows):
        values = [task.score_text(facts[name][index]).replace("%", " %") for name in scores]
        values += [f"{facts[name][index]:.4f}" for name in others]
        table.add_row(str(index + 1), str(row.stage), row.blocks, row.head, *values)
    return table
