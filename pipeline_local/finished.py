"""Uses a finished run: exports its weights under the model's own names, and evaluates it."""

from collections.abc import Callable
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from pipeline_local import newfile
from pipeline_local.blueprint.blueprint import Blueprint
from pipeline_local.blueprint.run_plan import Evaluate
from pipeline_local.data.images.datasets import DataInfo
from pipeline_local.data.images.skipping import Skipped
from pipeline_local.errors import UserError
from pipeline_local.learning.module import LocalModule
from pipeline_local.models import weights
from pipeline_local.pipeline.edge import Nowhere
from pipeline_local.pipeline.source import Source
from pipeline_local.pipeline.stage import Stage
from pipeline_local.placement.describe import describe
from pipeline_local.placement.draw import draw
from pipeline_local.placement.placement import Placement
from pipeline_local.ranks.rank import RankInfo
from pipeline_local.record import metrics, summary
from pipeline_local.record.checkpoint import Checkpoints
from pipeline_local.record.folder import RunFolder
from pipeline_local.record.trace import Trace
from pipeline_local.watch.store import Facts


def load(run: Path, device: torch.device) -> tuple[Blueprint, list[LocalModule], int]:
    """Loads the modules of a run from its newest complete checkpoint.

    Returns:
        The blueprint, the K modules on `device`, and the step of the checkpoint.

    Raises:
        UserError: no run, or no complete checkpoint.
    """
    folder = RunFolder(run)
    config = folder.load_config()
    blueprint = draw(config, DataInfo.from_json(folder.load_info()))
    checkpoints = Checkpoints(folder.checkpoints, len(blueprint.modules))
    step = checkpoints.latest()
    if step is None:
        raise UserError(f"{run} has no complete checkpoint yet; let the run reach one")
    modules = [blueprint.module(k, device) for k in range(len(blueprint.modules))]
    for module in modules:
        checkpoints.load(module, step)
    return blueprint, modules, step


def export(run: Path, output: Path) -> dict[str, Tensor]:
    """Writes backbone and classifier as safetensors, under the model's own names.

    A torchvision model loads the file with `strict=True`.

    Raises:
        UserError: no run, no complete checkpoint, or `output` exists already or cannot be written.
    """
    newfile.check("--output", output)
    if output.suffix != ".safetensors":
        raise UserError(f"--output: must end in .safetensors, got {output}; name such a file")
    blueprint, modules, _ = load(run, torch.device("cpu"))
    state = weights.model_state(part for module in modules for part in blueprint.parts(module))
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        save_file({name: value.contiguous() for name, value in state.items()}, output)
    except (OSError, SafetensorError) as error:
        raise UserError(f"--output: {output} cannot be written ({error}); name another") from None
    return state


def evaluate(run: Path, show: Callable[[list[summary.ModuleRow], Facts], None]) -> Facts:
    """Scores every head on the test set, alone and with all upstream heads, in this process.

    Args:
        run: the run folder.
        show: prints the rows and the results.

    Returns:
        The step, and per head the metric, the metric of the ensemble, and the loss.

    Raises:
        UserError: no run, or no complete checkpoint.
    """
    rank_info = RankInfo()
    device = rank_info.device
    blueprint, modules, step = load(run, device)
    rank_info.prepare(blueprint.config.parallel)
    action = Evaluate(step)
    skipped = Skipped()
    source = Source(
        blueprint.config, blueprint.info, [action], range(0), device, blueprint.dtype, skipped
    )
    stage = Stage(modules, source, Nowhere(), Trace())
    scores = metrics.of_scores(modules, stage.evaluate(blueprint.run_plan.test_batches, step))
    source.close()
    rows = [scores[str(k + 1)] for k in range(len(modules))]
    facts = {"steps": step, **summary.per_head(rows)}
    show(describe(Placement.of(blueprint, 1)), facts)
    summary.warn(skipped.warnings())
    return facts
