"""Draws a blueprint from a configuration and the facts about the data; decides the cuts."""

from dataclasses import replace

import torch
from torch import nn

from pipeline_local.blueprint.blueprint import Blueprint, input_dtype
from pipeline_local.blueprint.device import Device
from pipeline_local.blueprint.run_plan import RunPlan, microbatch_size
from pipeline_local.config import Config
from pipeline_local.data.info import DataInfo
from pipeline_local.engines import optimizer
from pipeline_local.errors import UserError
from pipeline_local.given.metric_names import TAKEN
from pipeline_local.learning import estimators
from pipeline_local.learning.tasks import TASKS, Task
from pipeline_local.learning.tasks.classification import Classification
from pipeline_local.learning.tasks.dense import Dense
from pipeline_local.learning.tasks.task import check as check_task
from pipeline_local.memory import trial
from pipeline_local.models import backbone as backbones
from pipeline_local.models import registry
from pipeline_local.models.backbone import Backbone
from pipeline_local.placement import balance, partition
from pipeline_local.placement.placement import costs_by_device, spread
from pipeline_local.user_input.registry import GIVEN


def draw(
    config: Config, info: DataInfo, device: Device | None = None, tries: bool = False
) -> Blueprint:
    """Derives the blueprint, and refuses what does not fit.

    Args:
        config: the configuration of the run.
        info: the facts about the data.
        device: the device that stages compute on; None for this host's.
        tries: whether every module is tried, too, before it trains: on fake tensors.

    Raises:
        UserError: the model cannot be built or trained, or K does not fit its blocks.
    """
    model = config.model
    task = make_task(config, info)
    dtype = input_dtype(info)
    backbone, outputs = registry.build(
        model.name, model.args, task.output_shape, info.sample_shape, dtype, config.train.seed
    )
    _check_layout(config, backbone)
    if language := backbone.language:
        # its own keys, wherever their file goes, and its whole vocabulary, which may be larger
        config = replace(config, model=replace(model, args={**language.args}))
        task = make_task(config, replace(info, num_classes=language.vocabulary))
    uncut = Blueprint(
        config=config,
        info=info,
        task=task,
        backbone=backbone,
        input_shapes=(info.sample_shape, *outputs[:-1]),
        output_shapes=tuple(outputs),
        modules=(range(len(outputs)),),
        run_plan=RunPlan(
            config, info.num_train, info.num_test, tied=bool(language and language.tied)
        ),
        device=device or Device.here(),
    )
    _check_last_test_batch(uncut)
    if tries and config.modules.cuts in ("auto", "memory"):
        trial.check(uncut)  # before its blocks are weighed
    blueprint = _cut(uncut)
    _check_trainable(blueprint)
    _check_entries(blueprint, tries)
    _check_auxiliary(blueprint)
    if tries:
        trial.check(blueprint)
    return blueprint


def make_task(config: Config, info: DataInfo) -> Task:
    """What is learned from these data.

    Raises:
        UserError: their labels do not fit the configured task.
    """
    own = {
        "label_smoothing": config.train.label_smoothing,
        "bytes_per_token": info.bytes_per_token,
    }
    options = TASKS.options(config.task.name, config.task.args, own)
    try:
        given = {"num_classes": info.num_classes, "label_shape": info.label_shape}
        task: Task = TASKS.make(config.task.name, Task, given, options)
        if config.task.name.startswith("python:"):
            check_task(task)
    except ValueError as error:
        sequences = len(info.label_shape) == 1 and info.label_shape == info.sample_shape
        another = "task.name=next_token" if sequences else "another task"
        raise UserError(
            f"task.name: {config.task.name} does not fit data.name={config.data.name} ({error});"
            f" choose {another} or other data"
        ) from None
    if type(task) in (Classification, Dense) and task.num_outputs == 1:
        raise UserError(
            f"task.name: {config.task.name} has a single class, which is nothing to tell apart;"
            f" give the data or the model several, or choose another task or loss"
        )
    if task.metric in TAKEN:
        raise UserError(
            f"task.name: {config.task.name} has a metric called {task.metric!r}, which summaries or"
            f" metrics hold already; give it another name"
        )
    twice = estimators.estimator(config.reconcile).differentiates_twice
    task.differentiates_twice = config.reconcile.feeds_back or twice
    return task


def _cut(uncut: Blueprint) -> Blueprint:
    """Cuts the network into modules; replaces `auto` and `memory` by the names of blocks."""
    config = uncut.config
    names = [block.name for block in uncut.backbone.blocks]
    sizes = [sum(p.numel() for p in b.module.parameters()) for b in uncut.backbone.blocks]
    modules = partition.modules_of(names, sizes, config.modules, lambda k: _best(uncut, k))
    if config.modules.cuts in ("auto", "memory"):
        opens = tuple(names[part.start] for part in modules[1:])
        config = replace(config, modules=replace(config.modules, cuts=opens))
    run_plan = replace(uncut.run_plan, num_modules=len(modules))
    return replace(uncut, config=config, modules=tuple(modules), run_plan=run_plan)


def _best(uncut: Blueprint, count: int) -> list[range]:
    if uncut.config.modules.cuts == "memory":
        return balance.even_memory(uncut, count)
    return balance.best_modules(uncut, spread(costs_by_device(uncut), count))


def _check_layout(config: Config, backbone: Backbone) -> None:
    if config.channels_last and backbone.layout != "NCHW":
        raise UserError(
            f"channels_last: needs a model with activations of layout NCHW, got"
            f" model.name={config.model.name} with {backbone.layout}; leave it out"
        )


def _check_entries(blueprint: Blueprint, tries: bool) -> None:
    """A user's own estimator, optimizer or schedule that is none shows here."""
    config = blueprint.config
    estimators.estimator(config.reconcile)
    if config.optimizer.name.startswith("python:"):
        optimizer.build(config.optimizer, [nn.Parameter(torch.zeros(1))])
    schedule, steps = config.optimizer.schedule, blueprint.run_plan.num_steps
    if schedule.startswith("python:") or (tries and schedule == GIVEN):
        for number in {0, steps - 1}:
            blueprint.run_plan.lr(number)


def _check_auxiliary(blueprint: Blueprint) -> None:
    """What only modules with an auxiliary head have needs one, and distillation a divergence."""
    distill, information = blueprint.config.distill, blueprint.config.information
    alone = len(blueprint.modules) == 1
    if alone and information.name is not None:
        raise UserError(
            f"information.name: {information.name} stands beside auxiliary heads, and a single"
            f" module has none; set modules.count to at least 2, or leave information out"
        )
    if distill.weight == 0:
        return
    if alone:
        raise UserError(
            f"distill.weight: {distill.weight} trains auxiliary heads, and a single module has none"
            f"; set modules.count to at least 2, or leave distill out"
        )
    if blueprint.task.divergence is None:
        raise UserError(
            f"distill.weight: task.name={blueprint.config.task.name} does not say how far outputs"
            f" are from a teacher's; leave distill out, or give the task a method divergence"
        )


def _check_last_test_batch(uncut: Blueprint) -> None:
    """A norm that takes its statistics from the batch may refuse a batch of one sample."""
    config = uncut.config
    part = microbatch_size(config)
    if part == 1 or (uncut.run_plan.test_batches[-1] - 1) % part:
        return
    try:
        shape = (1, *uncut.info.sample_shape)
        *_, features = backbones.shapes(uncut.backbone, shape, input_dtype(uncut.info))
        backbones.through(uncut.backbone.classifier, torch.empty(features, device="meta"))
    except ValueError as error:
        raise UserError(
            f"data.batch_size: {config.data.batch_size} leaves a last test batch (or microbatch) of"
            f" one of {uncut.info.num_test} samples, which the model cannot take alone ({error});"
            f" choose another batch size"
        ) from None


def _check_trainable(blueprint: Blueprint) -> None:
    for index in range(len(blueprint.modules)):
        parts = [*blueprint.meta_body(index), blueprint.meta_head(index)]
        if not any(p.requires_grad for part in parts for p in part.parameters()):
            names = ", ".join(block.name for block in blueprint.blocks(index))
            raise UserError(
                f"modules.cuts: module {index + 1} ({names}) and its head have no trainable"
                f" parameters; cut elsewhere, or choose a head.name with parameters"
            )
