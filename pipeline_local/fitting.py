"""`fit`: train a program's own model on its own data, on any number of stages, in a few lines."""

from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from pipeline_local import agreement, configfile, finished, trainer
from pipeline_local.callbacks import Callback
from pipeline_local.config import Config
from pipeline_local.data.datasets import DataInfo, GivenData
from pipeline_local.data.given import Given as GivenSamples
from pipeline_local.data.given import given
from pipeline_local.given import Given, Loss, handed
from pipeline_local.layout import Layout
from pipeline_local.models import given as given_models
from pipeline_local.ranks.call import on_ranks
from pipeline_local.ranks.rank import RankInfo
from pipeline_local.record.folder import RunFolder
from pipeline_local.registry import GIVEN
from pipeline_local.watch.store import Facts

MakeOptimizer = Callable[[Iterable[nn.Parameter]], torch.optim.Optimizer]


def fit(
    model: given_models.Given,
    train: object,
    test: object,
    *,
    stages: int | None = None,
    modules: int | None = None,
    epochs: int | None = None,
    batch_size: int | None = None,
    loss: Loss | None = None,
    metric: Callable[[Tensor, Tensor], Any] | None = None,
    task: str | Mapping[str, Any] | None = None,
    optimizer: str | MakeOptimizer = "sgd",
    lr: float | None = None,
    schedule: str | Callable[[int, int], float] = "cosine",
    layout: Layout | None = None,
    callbacks: Sequence[Callback] = (),
    run_dir: str | Path | None = None,
    resume: bool = False,
    **sections: Any,  # noqa: ANN401 (any keys of the configuration)
) -> Facts:
    """Train a model by local learning, on one or several stages, and leave its weights in it.

    In a plain program or a notebook the ranks are started here; under torchrun or another launcher
    each rank calls this, and the first one's weights count. The run folder is that of any run.

    Args:
        model: an `nn.Module`, an `nn.Sequential`, or its blocks in order with the classifier last.
            Its weights are where training starts, and hold the result in the end. It is cut where
            a single tensor passes.
        train: (x, y) tensors or arrays, a map-style `Dataset`, a `DataLoader`, or a Hugging Face
            data set.
        test: the same, to evaluate on.
        stages: ranks in a chain; None: the launcher's, or 1.
        modules: gradient-isolated parts (K), each with a local loss; None: one per stage.
        epochs: passes over the training data; or give `train={"steps": ...}` among the sections.
        batch_size: samples per optimizer step; None: the DataLoader's, else 128.
        loss: outputs [B, ...] and labels [B, ...] -> scalar, a mean over the batch; None: the
            task's.
        metric: of the same arguments, any number that is a mean over the batch; None: the task's.
        task: classification, regression, multi_label or dense, or a mapping with its name and
            options; None: by the labels. Whole numbers are classes, maps [H, W] of them dense;
            floating-point numbers are regression.
        optimizer: a name (`optimizer.name`), or what makes an optimizer of a module's parameters.
        lr: highest learning rate; None: the optimizer's own, else 0.1.
        schedule: a name (`optimizer.schedule`), or (step, num_steps) -> factor of the rate.
        layout: of the activations, where it cannot be seen: NCHW, NHWC, NCT, NTC or NC.
        callbacks: are called at the points of the run plan, on every rank.
        run_dir: the run folder, never overwritten; None: runs/fit, or runs/fit-2 and so on where
            that is taken (under a launcher, where all ranks must mean the same: runs/fit).
        resume: go on from its newest checkpoint.
        sections: further keys of the configuration, such as `head={"name": "linear"}`,
            `reconcile={"weight": 0.1}`, `precision="bfloat16"`.

    Returns:
        What summary.json holds; on any rank but the first, this stage's own part of it.

    Raises:
        UserError: what the user must change, in one line.

    Example:
        >>> summary = fit(model, (x, y), (x_test, y_test), stages=2, epochs=3)
        >>> summary["accuracy"][-1]
    """
    own, held_out = given(train), given(test)
    rank_info = RankInfo.from_environment()
    objects = Given(
        model=model,
        example=_example(own),
        layout=layout,
        loss=loss,
        metric=metric,
        optimizer=None if isinstance(optimizer, str) else optimizer,
        schedule=None if isinstance(schedule, str) else schedule,
    )
    outputs = _outputs(objects)
    tree = {
        "model": {"name": GIVEN},
        "data": {"name": GIVEN, "batch_size": batch_size or own.batch_size or 128},
        "task": _task(task or _task_name(own, outputs), loss is not None or metric is not None),
        "modules": {"count": modules or max(stages or rank_info.world_size, 1)},
        "train": {} if epochs is None else {"epochs": epochs},
        "optimizer": _optimizer(optimizer, lr, schedule, objects),
        "parallel": {"stages": stages},
        "run": {"dir": str(run_dir or _free_run(rank_info)), "resume": resume},
    }
    config = configfile.parse(_merged(tree, sections))
    data = GivenData(own, held_out, outputs[0], config.data.batch_size, config.data.workers)
    objects = replace(objects, data=data)
    with handed(objects):
        num_stages = rank_info.num_stages(config.parallel)
        if num_stages > rank_info.world_size:
            there = RankInfo(world_size=num_stages, local_world_size=num_stages)
            agreement.check(config, there)
            on_ranks(num_stages, partial(_on_rank, objects, config, tuple(callbacks)))
            summary = RunFolder(config.run.dir).load_summary()
        else:
            summary = trainer.train(config, rank_info, callbacks)
        given_models.receive(model, finished.load_parts(config.run.dir))
    return summary


def load(
    run: str | Path, model: given_models.Given | None = None, step: int | str = "newest"
) -> nn.Module:
    """The network of a run, with its trained weights, in evaluation mode on the CPU.

    Args:
        run: its folder.
        model: of a run that `fit` has made: a model like the one that was trained; it gets the
            weights. None: of any other run, the network is made anew from the configuration.
        step: of the checkpoint: "newest", a number of optimizer steps, or a name ("best").

    Raises:
        UserError: no run, no such checkpoint, or the model is another one.
    """
    folder = RunFolder(Path(run))
    if model is None:
        parts = finished.load_parts(folder.path, step)
        named = OrderedDict((block.name.replace(".", "_"), part) for block, part in parts)
        return nn.Sequential(named).eval()
    info = DataInfo.from_json(folder.load_info())
    example = torch.zeros(2, *info.image_shape, dtype=getattr(torch, info.dtype))
    with handed(Given(model=model, example=example)):
        return given_models.receive(model, finished.load_parts(folder.path, step)).eval()


def _on_rank(objects: Given, config: Config, callbacks: Sequence[Callback]) -> None:
    with handed(objects):
        trainer.train(config, RankInfo.from_environment(), callbacks)


def _example(data: GivenSamples) -> Tensor:
    """Two inputs of the data."""
    indices = range(min(2, len(data.samples)))
    return torch.stack([data.samples[index][0] for index in indices])


def _outputs(objects: Given) -> tuple[int, ...]:
    """One sample's output shape, by the blocks of the model on the meta device."""
    return given_models.output_shape(objects.backbone, objects.example)


def _task_name(data: GivenSamples, outputs: tuple[int, ...]) -> str:
    if data.form.y_dtype.is_floating_point:
        return "regression"
    return "dense" if len(data.form.y_shape) == 2 and len(outputs) == 3 else "classification"


def _free_run(rank_info: RankInfo) -> Path:
    names = (Path("runs", f"fit-{n}" if n > 1 else "fit") for n in count(1))
    return next(name for name in names if rank_info.launched or not name.exists())


def _task(task: str | Mapping[str, Any], is_own: bool) -> dict[str, Any]:
    """The section: with a loss or metric of its own, a task is the base of another one."""
    options = {"name": task} if isinstance(task, str) else dict(task)
    if not is_own:
        return options
    return {"name": GIVEN, "base": options.pop("name"), "options": options}


def _optimizer(
    optimizer: str | MakeOptimizer,
    lr: float | None,
    schedule: str | Callable[[int, int], float],
    objects: Given,
) -> dict[str, Any]:
    named = isinstance(optimizer, str)
    if lr is None and objects.optimizer is not None:
        probe = objects.optimizer([nn.Parameter(torch.zeros(1))])
        lr = float(probe.defaults["lr"])
    return {
        "name": optimizer if named else GIVEN,
        "lr": 0.1 if lr is None else lr,
        "schedule": schedule if isinstance(schedule, str) else GIVEN,
    }


def _merged(tree: dict[str, Any], sections: Mapping[str, Any]) -> dict[str, Any]:
    """Sections are merged key by key."""
    merged = dict(tree)
    for name, value in sections.items():
        both = isinstance(value, Mapping) and isinstance(merged.get(name), dict)
        merged[name] = {**merged[name], **value} if both else value
    return merged
