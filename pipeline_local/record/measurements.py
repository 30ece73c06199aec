"""What the modules of a stage have measured, in a step and in an evaluation."""

import math

import torch
from torch import Tensor

from pipeline_local.engines.replicas import Replicas
from pipeline_local.errors import UserError, counted
from pipeline_local.learning.module import LocalModule
from pipeline_local.learning.tasks import Score


def refuse_divergence(
    modules: list[LocalModule], scores: dict[str, dict[str, float]], step: int
) -> None:
    """Stops a run that has diverged.

    Raises:
        UserError: a loss on the test set is not finite; names the module and the step.
    """
    for module, (number, row) in zip(modules, scores.items(), strict=True):
        if not math.isfinite(row["loss"]):
            raise UserError(
                f"module {number}: the loss on the test set is {row['loss']} after step {step};"
                f" {module.guard.remedy}lower optimizer.lr, raise optimizer.warmup or set"
                f" optimizer.clip"
            )


def of_step(modules: list[LocalModule]) -> dict[str, dict[str, float]]:
    """Returns each module's latest metrics, by its number (from 1); waits for the device.

    Those of several replicas are the same, and only the first of them gives them.
    """
    if modules[0].replicas.index:
        return {}
    return {
        str(module.index + 1): {name: value.item() for name, value in module.metrics.items()}
        for module in modules
    }


def warnings(modules: list[LocalModule]) -> list[str]:
    """Returns a line for each module that has skipped updates; waits for the device."""
    counts = {module.index + 1: int(module.guard.skipped) for module in modules}
    return [
        f"module {number}: {counted(count, 'update was', 'updates were')} skipped, as a loss or"
        f" gradient was not finite"
        for number, count in counts.items()
        if count
    ]


def of_scores(modules: list[LocalModule], scores: list[list[Score]]) -> dict[str, dict[str, float]]:
    """Returns each head's loss and score on the whole test set, alone and together with all
    upstream heads (`ensemble_...`), by number (from 1). All replicas call it together."""
    return {
        str(module.index + 1): module.rules.task.measures(_means(row, module.replicas))
        for module, row in zip(modules, scores, strict=True)
    }


def _means(scores: list[Score], replicas: Replicas) -> dict[str, float]:
    def total(values: list[Tensor]) -> float:
        # one wait for the device, however many batches
        return float(sum(torch.stack(values).tolist()))

    sums = {
        name: total([getattr(score, name) for score in scores])
        for name in ("count", "loss", "score", "ensemble")
    }
    sums |= {name: total([score.others[name] for score in scores]) for name in scores[0].others}
    device = scores[0].loss.device
    whole = [torch.tensor(value, dtype=torch.float64, device=device) for value in sums.values()]
    summed = replicas.sum(whole)()
    sums = dict(zip(sums, torch.stack(summed).tolist(), strict=True))
    # without a readable image, the first stage ends the run
    count = max(1, sums.pop("count"))
    return {name: value / count for name, value in sums.items()}
