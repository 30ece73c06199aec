"""The arguments of `fit`: objects are collected, and all else becomes a configuration."""

from collections.abc import Callable, Collection, Mapping
from typing import Any, NamedTuple, TypeAlias

import torch
from torch import Tensor
from torch.nn.parameter import is_lazy

from pipeline_local.config import OptimizerConfig, RunConfig
from pipeline_local.configfile import configfile
from pipeline_local.configfile.contradictions import LENGTHS
from pipeline_local.data.given import GivenSamples, given
from pipeline_local.engines.optimizer import MakeOptimizer
from pipeline_local.errors import UserError, did_you_mean
from pipeline_local.given.given import Given, Loss, as_weights, optimizer_of
from pipeline_local.layout import Layout
from pipeline_local.learning.tasks import Task
from pipeline_local.models import given as given_models
from pipeline_local.ranks.rank import RankInfo
from pipeline_local.record.folder import RunFolder
from pipeline_local.seeds import generators_kept
from pipeline_local.user_input.registry import GIVEN
from pipeline_local.user_input.values import shorten

Schedule = Callable[[int, int], float]
Tree: TypeAlias = dict[str, Any]
"""Sections of a configuration, as in its YAML file."""
_KEYS = tuple(configfile.keys())


def check(
    model: given_models.GivenModel,
    epochs: int | None,
    sections: Mapping[str, Any],
    own: Collection[str],
) -> None:
    """Refuse what can be seen to be wrong before the data is looked at.

    Args:
        model, epochs, sections: as for `fit`.
        own: the names of all other arguments.

    Raises:
        UserError: the mistake.
    """
    _check_names(sections, own)
    given = {*_section(sections, "train")}
    known = {key.partition(".")[2] for key in _KEYS if key.startswith("train.")}
    if epochs is None and not given & {*LENGTHS} and given <= known:  # else the typo is named
        raise UserError("fit: how long to train is not said; pass epochs=N or train={'steps': N}")
    weights = given_models.network_of(model)[0].parameters()
    if any(weight.is_inference() for weight in weights if not is_lazy(weight)):
        raise UserError(
            "model: its weights were made in torch.inference_mode(), which forbids to change them;"
            " make it outside"
        )


def _check_names(sections: Mapping[str, Any], own: Collection[str]) -> None:
    """Refuse arguments that are no section; one with the name of a key is told its place."""
    keys = [key.partition(".") for key in _KEYS]
    known = [*dict.fromkeys([*own, *(section for section, _, _ in keys)])]
    for name in sections:
        homes = [s for s, dot, key in keys if dot and name in (key, f"{s}.{key}")]
        forms = " or ".join(f"{home}={{{name.rpartition('.')[2]!r}: ...}}" for home in homes)
        if name not in known:
            hint = f"; pass {forms}" if homes else did_you_mean(name, known)
            hint = hint or f"; there are {', '.join(known)}"
            raise UserError(f"fit: unknown argument {shorten(name)}{hint}")


def _section(sections: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    """The keys of a section, of which there may be none."""
    section = sections.get(name)
    if section is not None and not isinstance(section, Mapping):
        raise UserError(f"{name}: should be a dict of keys with values, got {shorten(section)}")
    return section or {}


def check_task(task: object, loss: object, metric: object) -> None:
    """Refuse what would not be learned.

    Raises:
        UserError: the task is none, or has a loss and a metric beside its own ones.
    """
    if task is not None and not isinstance(task, str | Mapping | Task):
        raise UserError(
            f"task: should be a name, a mapping with its name and options, or an object of a class"
            f" that inherits from Task, got {shorten(task)}"
        )
    for key, function in (("loss", loss), ("metric", metric)):
        if isinstance(task, Task) and function is not None:
            raise UserError(
                f"{key}: changes nothing beside a Task object, which has its own; leave it out, or"
                f" define it in {type(task).__name__}"
            )


class Updates(NamedTuple):
    """How weights are updated.

    Attributes:
        optimizer: a name, or what makes one.
        lr: highest learning rate; None: the optimizer's own.
        schedule: a name, or a function.
        keys: the further keys of `optimizer`.
    """

    optimizer: str | MakeOptimizer
    lr: float | None
    schedule: str | Schedule
    keys: Tree


def updates(
    optimizer: str | Mapping[str, Any] | MakeOptimizer, lr: float | None, schedule: str | Schedule
) -> Updates:
    """Take the section `optimizer` apart, if it is one.

    Raises:
        UserError: the schedule is none, or a key is given twice.
    """
    keys: Tree = {**optimizer} if isinstance(optimizer, Mapping) else {"name": optimizer}
    for key, value, usual in (("lr", lr, None), ("schedule", schedule, "cosine")):
        if key in keys and value != usual:
            raise UserError(f"{key}: is also a key of optimizer={{...}}; leave out one of them")
    lr, schedule = keys.pop("lr", lr), keys.pop("schedule", schedule)
    if not isinstance(schedule, str) and not callable(schedule):
        raise UserError(
            f"schedule: should be a name such as 'constant', or a function (step, num_steps) ->"
            f" factor of the rate, got {shorten(schedule)}"
        )
    return Updates(keys.pop("name", OptimizerConfig.name), lr, schedule, keys)


def samples(name: str, data: object) -> GivenSamples:
    """Return one split of the data; its name is that of the argument.

    Raises:
        UserError: it is nothing that has samples by index.
    """
    try:
        return given(data)
    except UserError as error:
        raise UserError(f"{name}: {error}") from error


def collected(
    model: given_models.GivenModel,
    data: GivenSamples,
    task: str | Mapping[str, Any] | Task | None,
    loss: Loss | None,
    metric: Callable[[Tensor, Tensor], Any] | None,
    optimizer: str | MakeOptimizer,
    schedule: str | Schedule,
    layout: Layout | None,
) -> Given:
    """Return the objects among the arguments, still without data; names are left to the sections.

    Raises:
        UserError: the first samples of the data hold NaN or infinity.
    """
    return Given(
        model=model,
        example=_example(data, model),
        layout=layout,
        task=task if isinstance(task, Task) else None,
        loss=loss,
        metric=metric,
        optimizer=None if isinstance(optimizer, str) else optimizer,
        schedule=None if isinstance(schedule, str) else schedule,
    )


def _example(data: GivenSamples, model: given_models.GivenModel) -> Tensor:
    """Two inputs of the data, in the precision of the model."""
    indices = range(min(2, len(data.samples)))
    with generators_kept():
        example = torch.stack([data.samples[index][0] for index in indices])
    if not example.isfinite().all():
        raise UserError("data: the first training samples hold NaN or infinity; clean them")
    return as_weights(example, model)


def learned(
    objects: Given,
    data: GivenSamples,
    task: str | Mapping[str, Any] | Task | None,
    batch_size: int | None,
) -> Tree:
    """Return the sections that say what is learned: `model`, `data` and `task`."""
    usual = data.batch_size or min(128, len(data.samples))
    size = usual if batch_size is None else batch_size
    return {
        "model": {"name": GIVEN},
        "data": {"name": GIVEN, "batch_size": size, "workers": data.workers or 0},
        "task": _task(objects, task, data),
    }


def _task(
    objects: Given, task: str | Mapping[str, Any] | Task | None, data: GivenSamples
) -> dict[str, Any]:
    """The section: with a loss or metric of its own, a task is the base of another one."""
    is_map = len(data.form.y_shape) == 2 and len(objects.output_shape) == 3
    by_labels = "dense" if is_map else "classification"
    if is_language(objects, data):
        by_labels = "next_token"
    if data.form.y_dtype.is_floating_point:
        by_labels = "regression"
    options = {"name": by_labels} | (dict(task) if isinstance(task, Mapping) else {})
    options |= {"name": task} if isinstance(task, str) else {}
    if objects.loss is None and objects.metric is None and objects.task is None:
        return options
    return {"name": GIVEN, "base": options.pop("name"), "options": options}


def is_language(objects: Given, data: GivenSamples) -> bool:
    """Whether labels are tokens [T] of outputs [T, V].

    Raises:
        UserError: inputs are tokens, too, and labels are fewer or more than outputs.
    """
    outputs, form = objects.output_shape, data.form
    whole = not form.y_dtype.is_floating_point
    may_be = whole and len(form.y_shape) == 1 and len(outputs) == 2
    if may_be and outputs[:1] != form.y_shape and not form.x_dtype.is_floating_point:
        raise UserError(
            f"train: labels must be a token for each of the {outputs[0]} places of the outputs, got"
            f" {form.y_shape[0]} for inputs of {form.x_shape[0]}; give the tokens that follow"
        )
    return may_be and outputs[:1] == form.y_shape


def updated(
    objects: Given,
    optimizer: str | MakeOptimizer,
    lr: float | None,
    schedule: str | Schedule,
    epochs: int | None,
) -> Tree:
    """Return what says how weights are updated, and how long: `optimizer` and `train`."""
    if not isinstance(optimizer, str):
        usual = _usual_rate(optimizer, objects)
        lr = usual if lr is None else lr
    return {
        "optimizer": {
            "name": optimizer if isinstance(optimizer, str) else GIVEN,
            "lr": 0.1 if lr is None else lr,
            "schedule": schedule if isinstance(schedule, str) else GIVEN,
        },
        "train": {} if epochs is None else {"epochs": epochs},
    }


def placed(
    run: RunConfig,
    modules: int | Mapping[str, Any] | None,
    stages: int | None,
    sections: Mapping[str, Any],
) -> Tree:
    """Return the sections that say where it runs: `modules`, `parallel` and `run`.

    There are as many modules as said, or as a run to be resumed has; else one per stage.
    """
    keys = {**modules} if isinstance(modules, Mapping) else {"count": modules}
    cuts = keys.get("cuts")
    said = keys.get("count") is not None or cuts == "blocks" or isinstance(cuts, list | tuple)
    if not said and run.resume and RunFolder(run.dir).config.is_file():
        keys["count"] = RunFolder(run.dir).load_config().modules.count
    elif not said:
        named: int | None = _section(sections, "parallel").get("stages")
        keys["count"] = stages or named or RankInfo.from_environment().world_size
    return {
        "modules": keys,
        "parallel": {"stages": stages},
        "run": {"dir": run.dir, "resume": run.resume},
    }


def _usual_rate(optimizer: MakeOptimizer, objects: Given) -> float | None:
    """The default of the optimizer that a program makes, tried on its own parameters."""
    if not callable(optimizer):
        raise UserError(
            f"optimizer: each module has its own, so pass what makes one of parameters, such as"
            f" lambda params: torch.optim.Adam(params, lr=1e-3): got {type(optimizer).__name__}"
        )
    network, _ = given_models.network_of(objects.model)
    params = [p for p in network.parameters() if p.requires_grad]
    if not params:  # whether the heads have some is seen later
        return None
    made = optimizer_of(optimizer, params)
    return float(made.defaults["lr"]) if "lr" in made.defaults else None


def merged(tree: Tree, sections: Mapping[str, Any]) -> Tree:
    """Return the tree with the sections of a call put into it, key by key."""
    merged = dict(tree)
    for name, value in sections.items():
        if value is None and isinstance(merged.get(name), dict):  # as an empty section of a file
            continue
        both = isinstance(value, Mapping) and isinstance(merged.get(name), dict)
        merged[name] = {**merged[name], **value} if both else value
    return merged
