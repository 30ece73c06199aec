"""Uses a finished run: loads its modules, and evaluates it."""

from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields, replace
from numbers import Integral
from pathlib import Path

import torch
from torch import nn

from pipeline_local.blueprint.blueprint import Blueprint
from pipeline_local.blueprint.run_plan import Evaluate, microbatch_size
from pipeline_local.config import DataConfig
from pipeline_local.configfile import configfile
from pipeline_local.console.screen import say, warn
from pipeline_local.data.datasets import check_again
from pipeline_local.data.info import DataInfo, Split
from pipeline_local.data.skipped import Skipped
from pipeline_local.errors import ConfigError, UserError, counted
from pipeline_local.given.given import handed, like
from pipeline_local.learning.module import LocalModule
from pipeline_local.learning.tasks import NextToken, Task
from pipeline_local.models.backbone import Block
from pipeline_local.models.given import GivenModel
from pipeline_local.pipeline.edge import Nowhere
from pipeline_local.pipeline.source import Source
from pipeline_local.pipeline.stage import Stage
from pipeline_local.placement.describe import describe
from pipeline_local.placement.draw import draw
from pipeline_local.placement.placement import Placement
from pipeline_local.ranks.caller import undisturbed
from pipeline_local.ranks.rank import RankInfo
from pipeline_local.record import measurements, summary
from pipeline_local.record.checkpoint import Checkpoints
from pipeline_local.record.choice import chosen_heads
from pipeline_local.record.folder import RunFolder
from pipeline_local.record.trace import Trace
from pipeline_local.user_input.json_text import Facts
from pipeline_local.user_input.registry import GIVEN
from pipeline_local.user_input.values import shorten

CPU = torch.device("cpu")


def load(
    run: Path, device: torch.device = CPU, step: int | str = "newest", compiled: bool = True
) -> tuple[Blueprint, list[LocalModule], int]:
    """The modules of a run as a complete checkpoint has them, and its step.

    Args:
        run: its folder.
        device: where the modules are to be.
        step: of the checkpoint: "newest", a number of optimizer steps, or a name such as "best".
        compiled: whether the modules are compiled where the run's were.

    Raises:
        UserError: no run, or no complete checkpoint.
    """
    folder = RunFolder(run)
    config = folder.load_config()
    blueprint = draw(config, DataInfo.from_json(folder.load_info()))
    checkpoints = Checkpoints(folder.checkpoints, len(blueprint.modules))
    found = _found(checkpoints, step)
    make = blueprint.module if compiled else blueprint.uncompiled
    modules = [make(k, device) for k in range(len(blueprint.modules))]
    for module in modules:
        checkpoints.load(module, found)
    return blueprint, modules, found


@contextmanager
def standing_in(folder: RunFolder, model: GivenModel | None) -> Iterator[None]:
    """Let a program's model stand for the one with which `fit` has made a run; None: for none.

    Raises:
        UserError: no run, or the run makes its network itself.
    """
    config = folder.load_config()  # says what is no run folder
    if model is None:
        yield
        return
    if config.model.name != GIVEN:
        raise UserError(
            f"model: {folder.path} is a run of model.name={config.model.name}, whose network is"
            f" made from its configuration; leave the model out"
        )
    objects = like(model, DataInfo.from_json(folder.load_info()))
    blocks, count = len(objects.backbone.blocks), config.modules.count or 1
    if blocks < count:
        raise UserError(
            f"model: {folder.path} has {count} modules, and this one only"
            f" {counted(blocks, 'block')} to make them of; give one like the model that was trained"
        )
    with handed(objects):
        yield


def load_parts(run: Path, step: int | str = "newest") -> list[tuple[Block, nn.Module]]:
    """The blocks of a network, each with its trained weights, on the CPU; the classifier last.

    Raises:
        UserError: as `load`.
    """
    blueprint, modules, _ = load(run, CPU, step)
    return [part for module in modules for part in blueprint.parts(module)]


def _found(checkpoints: Checkpoints, step: int | str) -> int:
    if not isinstance(step, str | Integral):
        raise UserError(f"step: should be a number of steps or a name, got {shorten(step)}")
    if isinstance(step, str) and step != "newest":
        return checkpoints.named(step)
    found = checkpoints.latest() if isinstance(step, str) else step
    if found is None:
        raise UserError(
            f"{checkpoints.folder} has no complete checkpoint yet; let the run reach one"
        )
    if problems := checkpoints.problems(found):
        what = next(iter(problems.values())) if checkpoints.at(found).exists() else "is not there"
        others = ", ".join(str(step) for step in checkpoints.steps() if step != found) or "none"
        raise UserError(f"checkpoint {checkpoints.at(found)}: {what}; name another step: {others}")
    return found


@dataclass(frozen=True)
class TestSet:
    """A finished run and its test set, ready to be evaluated.

    Attributes:
        blueprint: of the run, with the data as it is now.
        modules: all of them, on the device.
        step: of their checkpoint.
        source: gives the test batches, once.
    """

    __test__ = False  # for pytest

    blueprint: Blueprint
    modules: list[LocalModule]
    step: int
    source: Source


@contextmanager
def test_set(
    run: Path,
    overrides: Sequence[str],
    step: int | str,
) -> Iterator[TestSet]:
    """Open a run and its test set; at the end, warn of images that could not be read.

    Args:
        run: its folder.
        overrides: `key=value`, of `READING` and `SIZES` alone.
        step: of the checkpoint, as for `load`.

    Raises:
        UserError: no run, no such checkpoint, another key, or other data than in training.
    """
    rank_info = RankInfo()
    blueprint, modules, found = load(run, rank_info.device, step)
    blueprint = reading(blueprint, run, overrides, "test")
    rank_info.prepare(blueprint.config.parallel)
    config, info, dtype, skipped = blueprint.config, blueprint.info, blueprint.dtype, Skipped()
    source = Source(config, info, [Evaluate(found)], range(0), rank_info.device, dtype, skipped)
    try:
        yield TestSet(blueprint, modules, found, source)
    finally:
        source.close()
    warn(*skipped.warnings())


@undisturbed
def evaluate(
    run: Path,
    show: Callable[[list[summary.ModuleRow], Facts, Task], None],
    overrides: Sequence[str] = (),
    step: int | str = "newest",
) -> Facts:
    """Scores every head on the test set, alone and with all upstream heads, in this process.

    Args:
        run: its folder.
        show: prints what each module is and the results, as the task shows its score.
        overrides, step: as for `test_set`.

    Returns:
        The step, per head the metric, the metric of the ensemble and the loss, and `predicts`: the
        heads that `Predictor` takes.

    Raises:
        UserError: as `test_set`.
    """
    with test_set(run, overrides, step) as test:
        blueprint, modules, task = test.blueprint, test.modules, test.blueprint.task
        stage = Stage(modules, test.source, Nowhere(), Trace())
        batches, parts = blueprint.run_plan.test_batches, blueprint.config.train.microbatches
        scores = measurements.of_scores(modules, stage.evaluate(batches, test.step, parts))
        rows = [scores[str(k + 1)] for k in range(len(modules))]
        choice = chosen_heads(RunFolder(run), test.step, len(modules), task)
        facts = {"steps": test.step, **summary.per_head(rows), "predicts": list(choice.heads)}
        show(describe(Placement.of(blueprint, 1)), facts, task)
        if task.predicts:
            say(f"By the run's own evaluation, Predictor takes {choice}")
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
    blueprint = relocated(blueprint, run, overrides, keys)
    config = blueprint.config
    try:
        info = check_again(config.data, blueprint.info, split)
    except UserError as error:
        if "data.root" not in str(error) or isinstance(error, ConfigError):
            raise
        raise UserError(f"{error}; if it has moved, pass data.root=NEW") from None
    task = blueprint.task
    if isinstance(task, NextToken) and info.bytes_per_token != blueprint.info.bytes_per_token:
        task.bytes_per_token = info.bytes_per_token  # those of this text; modules share the task
    plan = replace(
        blueprint.run_plan, config=config, num_train=info.num_train, num_test=info.num_test
    )
    return replace(blueprint, info=info, run_plan=plan)


def relocated(
    blueprint: Blueprint, run: Path, overrides: Sequence[str], keys: Collection[str] = READING
) -> Blueprint:
    """The blueprint of a finished run whose data, or tokenizer, is elsewhere now; reads nothing.

    Args:
        blueprint, run, overrides, keys: as for `reading`.

    Raises:
        UserError: another key.
    """
    own = {f"data.{each.name}" for each in fields(DataConfig)} - {*keys}
    for key in (text.partition("=")[0] for text in overrides):
        if key in own or not (key in keys or key.startswith("data.")):
            raise UserError(
                f"{key}: cannot be changed for a run that is trained; only {', '.join(keys)} and"
                f" options of data.name can"
            )
    if not overrides:
        return blueprint
    # a batch of another size need not be a multiple, and here is one rank
    alone = ("train.microbatches=1", "parallel.replicas=1")
    changed = configfile.load(RunFolder(run).config, [*overrides, *alone])
    config = blueprint.config
    largest = microbatch_size(config)  # microbatch, as in training
    train = replace(config.train, microbatches=-(-changed.data.batch_size // largest))
    config = replace(config, data=changed.data, parallel=changed.parallel, train=train)
    return replace(blueprint, config=config)
