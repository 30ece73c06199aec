"""Uses a finished run: exports its weights under the model's own names, and evaluates it."""

import tempfile
from collections.abc import Callable, Collection, Sequence
from dataclasses import fields, replace
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor, nn

from pipeline_local import configfile, newfile
from pipeline_local.blueprint.blueprint import Blueprint
from pipeline_local.blueprint.run_plan import Evaluate
from pipeline_local.config import DataConfig
from pipeline_local.data.datasets import DataInfo, check_again
from pipeline_local.data.images.entries import Split
from pipeline_local.data.images.skipping import Skipped
from pipeline_local.data.tokens.entry import tokenizer_of
from pipeline_local.errors import ConfigError, UserError
from pipeline_local.learning.module import LocalModule
from pipeline_local.learning.tasks import Task
from pipeline_local.models import hf_folder, weights
from pipeline_local.models.backbone import Block
from pipeline_local.pipeline.edge import Nowhere
from pipeline_local.pipeline.source import Source
from pipeline_local.pipeline.stage import Stage
from pipeline_local.placement.describe import describe
from pipeline_local.placement.draw import draw
from pipeline_local.placement.placement import Placement
from pipeline_local.ranks.caller import undisturbed
from pipeline_local.ranks.rank import RankInfo
from pipeline_local.record import metrics, summary
from pipeline_local.record.checkpoint import Checkpoints
from pipeline_local.record.choice import chosen_heads
from pipeline_local.record.folder import RunFolder
from pipeline_local.record.trace import Trace
from pipeline_local.screen import say
from pipeline_local.watch.store import Facts

CPU = torch.device("cpu")


def load(
    run: Path, device: torch.device = CPU, step: int | str = "newest"
) -> tuple[Blueprint, list[LocalModule], int]:
    """The modules of a run as a complete checkpoint has them, and its step.

    Args:
        run: its folder.
        device: where the modules are to be.
        step: of the checkpoint: "newest", a number of optimizer steps, or a name such as "best".

    Raises:
        UserError: no run, or no complete checkpoint.
    """
    folder = RunFolder(run)
    config = folder.load_config()
    blueprint = draw(config, DataInfo.from_json(folder.load_info()))
    checkpoints = Checkpoints(folder.checkpoints, len(blueprint.modules))
    found = _found(checkpoints, step)
    modules = [blueprint.module(k, device) for k in range(len(blueprint.modules))]
    for module in modules:
        checkpoints.load(module, found)
    return blueprint, modules, found


def load_parts(run: Path, step: int | str = "newest") -> list[tuple[Block, nn.Module]]:
    """The blocks of a network, each with its trained weights, on the CPU; the classifier last.

    Raises:
        UserError: as `load`.
    """
    blueprint, modules, _ = load(run, CPU, step)
    return [part for module in modules for part in blueprint.parts(module)]


def _found(checkpoints: Checkpoints, step: int | str) -> int:
    if isinstance(step, str) and step != "newest":
        return checkpoints.named(step)
    found = checkpoints.latest() if isinstance(step, str) else step
    if found is None:
        raise UserError(
            f"{checkpoints.folder} has no complete checkpoint yet; let the run reach one"
        )
    if problems := checkpoints.problems(found):
        raise UserError(f"step: {checkpoints.at(found)}: {next(iter(problems.values()))}")
    return found


@undisturbed
def export(run: Path, output: Path) -> dict[str, Tensor]:
    """Writes backbone and classifier as safetensors, under the model's own names.

    A torchvision model loads the file with `strict=True`. Of a language model, anything but a
    .safetensors file is a folder that `AutoModelForCausalLM.from_pretrained` loads.

    Raises:
        UserError: no run, no complete checkpoint, or `output` exists already or cannot be written.
    """
    newfile.check("--output", output)
    blueprint, modules, _ = load(run)
    language = blueprint.backbone.language
    if output.suffix != ".safetensors" and not language:
        raise UserError(f"--output: must end in .safetensors, got {output}; name such a file")
    state = weights.model_state(part for module in modules for part in blueprint.parts(module))
    if output.suffix != ".safetensors" and language:
        state, files = hf_folder.published(language, state)
        hf_folder.write(output, state, files | _tokenizer_files(blueprint))
        return state
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        save_file(
            {
                name: value.clone(memory_format=torch.contiguous_format)
                for name, value in state.items()
            },
            output,
        )
    except (OSError, SafetensorError) as error:
        raise UserError(f"--output: {output} cannot be written ({error}); name another") from None
    return state


def _tokenizer_files(blueprint: Blueprint) -> dict[str, bytes]:
    """The files of a Hugging Face tokenizer, by name; none where the data has no tokenizer."""
    if blueprint.info.tokenizer is None:
        return {}
    with tempfile.TemporaryDirectory() as folder:
        tokenizer_of(blueprint.config.data, blueprint.info).save(Path(folder))
        return {path.name: path.read_bytes() for path in Path(folder).iterdir()}


@undisturbed
def evaluate(
    run: Path,
    show: Callable[[list[summary.ModuleRow], Facts, Task], None],
    overrides: Sequence[str] = (),
) -> Facts:
    """Scores every head on the test set, alone and with all upstream heads, in this process.

    Args:
        run: its folder.
        show: prints what each module is and the results, as the task shows its score.
        overrides: `key=value`, of `READING` and `SIZES` alone.

    Returns:
        The step, per head the metric, the metric of the ensemble and the loss, and `predicts`: the
        heads that `Predictor` takes.

    Raises:
        UserError: no run, no complete checkpoint, another key, or other data than in training.
    """
    rank_info = RankInfo()
    device = rank_info.device
    blueprint, modules, step = load(run, device)
    blueprint = reading(blueprint, run, overrides, "test")
    rank_info.prepare(blueprint.config.parallel)
    action = Evaluate(step)
    skipped = Skipped()
    source = Source(
        blueprint.config, blueprint.info, [action], range(0), device, blueprint.dtype, skipped
    )
    stage = Stage(modules, source, Nowhere(), Trace())
    batches, parts = blueprint.run_plan.test_batches, blueprint.config.train.microbatches
    scores = metrics.of_scores(modules, stage.evaluate(batches, step, parts))
    source.close()
    rows = [scores[str(k + 1)] for k in range(len(modules))]
    choice = chosen_heads(RunFolder(run), step, len(modules), blueprint.task)
    facts = {"steps": step, **summary.per_head(rows), "predicts": list(choice.heads)}
    show(describe(Placement.of(blueprint, 1)), facts, blueprint.task)
    if blueprint.task.predicts:
        say(f"By the run's own evaluation, Predictor takes {choice}")
    summary.warn(skipped.warnings())
    return facts


READING = ("data.name", "data.root", "data.workers", "data.on_error", "parallel.threads")
"""Keys that may be changed for a finished run, and options of `data.name`: where its data is, and
how it is read. They change no mathematics."""
SIZES = ("data.batch_size", "data.limit")
"""The same of an evaluation: how many samples there are, and how many at once."""


def reading(
    blueprint: Blueprint,
    run: Path,
    overrides: Sequence[str],
    split: Split,
    keys: Collection[str] = READING + SIZES,
) -> Blueprint:
    """The blueprint of a finished run, to read its data where it is now.

    Args:
        blueprint: of the run, as `load` gives it.
        run: its folder.
        overrides: `key=value` pairs.
        split: the one that is going to be read.
        keys: that may be overridden, beside options of the data.

    Raises:
        UserError: another key, or the data is not what the run was trained on.
    """
    own = {f"data.{each.name}" for each in fields(DataConfig)} - {*keys}
    for key in (text.partition("=")[0] for text in overrides):
        if key in own or not (key in keys or key.startswith("data.")):
            raise UserError(
                f"{key}: cannot be changed for a run that is trained; only {', '.join(keys)} and"
                f" options of data.name can"
            )
    config = blueprint.config
    if overrides:
        # a batch of another size need not be a multiple
        changed = configfile.load(RunFolder(run).config, [*overrides, "train.microbatches=1"])
        config = replace(config, data=changed.data, parallel=changed.parallel)
    try:
        info = check_again(config.data, blueprint.info, split)
    except UserError as error:
        if "data.root" not in str(error) or isinstance(error, ConfigError):
            raise
        raise UserError(f"{error}; if it has moved, pass data.root=NEW") from None
    plan = replace(
        blueprint.run_plan, config=config, num_train=info.num_train, num_test=info.num_test
    )
    return replace(blueprint, config=config, info=info, run_plan=plan)
