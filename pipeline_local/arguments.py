"""The arguments of `fit`: objects are collected, and all else becomes a configuration."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from pipeline_local.callbacks import Callback
from pipeline_local.config import Config, RunConfig
from pipeline_local.data.datasets import GivenData
from pipeline_local.data.given import Given as GivenSamples
from pipeline_local.data.given import given
from pipeline_local.data.samples import Form, Samples, TensorSamples
from pipeline_local.errors import UserError
from pipeline_local.given import Given, Loss, as_weights, handed
from pipeline_local.layout import Layout
from pipeline_local.learning.tasks import Task
from pipeline_local.models import given as given_models
from pipeline_local.placement.draw import make_task
from pipeline_local.ranks.rank import RankInfo
from pipeline_local.record.folder import RunFolder
from pipeline_local.registry import GIVEN, reason
from pipeline_local.seeds import generators_kept

MakeOptimizer = Callable[[Iterable[nn.Parameter]], torch.optim.Optimizer]
Schedule = Callable[[int, int], float]
Tree: TypeAlias = dict[str, Any]
"""Sections of a configuration, as in its YAML file."""
_PART = 2**24
"""Numbers of inputs that are looked at in one go."""


def check(
    model: given_models.Given,
    epochs: int | None,
    sections: Mapping[str, Any],
    callbacks: Sequence[Callback],
) -> None:
    """Refuse what can be seen to be wrong before the data is looked at.

    Raises:
        UserError: the mistake.
    """
    if epochs is None and not {"steps", "epochs", "tokens"} & {*sections.get("train", {})}:
        raise UserError("fit: how long to train is not said; pass epochs=N or train={'steps': N}")
    if odd := [each for each in callbacks if not isinstance(each, Callback)]:
        raise UserError(f"callbacks: pass instances of Callback, got {odd[0]!r}")
    weights = given_models.network_of(model)[0].parameters()
    if any(weight.is_inference() for weight in weights if not is_lazy(weight)):
        raise UserError(
            "model: its weights were made in torch.inference_mode(), which forbids to change them;"
            " make it outside"
        )


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
    model: given_models.Given,
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


def _example(data: GivenSamples, model: given_models.Given) -> Tensor:
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
    if _is_language(objects, data):
        by_labels = "next_token"
    if data.form.y_dtype.is_floating_point:
        by_labels = "regression"
    options = {"name": by_labels} | (dict(task) if isinstance(task, Mapping) else {})
    options |= {"name": task} if isinstance(task, str) else {}
    if objects.loss is None and objects.metric is None and objects.task is None:
        return options
    return {"name": GIVEN, "base": options.pop("name"), "options": options}


def _is_language(objects: Given, data: GivenSamples) -> bool:
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
    modules: int | None,
    stages: int | None,
    sections: Mapping[str, Any],
) -> Tree:
    """Return the sections that say where it runs: `modules`, `parallel` and `run`.

    There are as many modules as said, or as a run to be resumed has; else one per stage.
    """
    if modules is None and run.resume and RunFolder(run.dir).config.is_file():
        modules = RunFolder(run.dir).load_config().modules.count
    if modules is None:
        named: int | None = merged({}, sections).get("parallel", {}).get("stages")
        modules = stages or named or RankInfo.from_environment().world_size
    return {
        "modules": {"count": modules},
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
    made = optimizer([p for p in network.parameters() if p.requires_grad])
    if not isinstance(made, torch.optim.Optimizer):
        raise UserError(
            f"optimizer: must return a torch optimizer of the parameters that it gets, got"
            f" {type(made).__name__}; return one"
        )
    return float(made.defaults["lr"]) if "lr" in made.defaults else None


def with_data(objects: Given, config: Config, train: GivenSamples, test: GivenSamples) -> Given:
    """Return the objects with both splits, once all of them fit each other.

    Raises:
        UserError: they do not.
    """
    _check_alike(train.form, test.form)
    outputs, size = objects.output_shape, config.data.batch_size
    num_classes = outputs[-1 if _is_language(objects, train) else 0]
    data = GivenData(train, test, num_classes, size, config.data.workers)
    with handed(objects):
        task = make_task(config, data.describe())
    for name, split in (("train", train), ("test", test)):
        _check_values(name, split, task, objects, config.train.on_nan)
    _try_functions(objects, task, train)
    return replace(objects, data=replace(data, accept=task.accept))


def _check_values(name: str, split: GivenSamples, task: Task, objects: Given, on_nan: str) -> None:
    """Whatever is in memory, and the first samples of any other data.

    What NaN means in a label is a program's own business, if its loss is.
    """
    own_labels = objects.task is not None or objects.loss is not None
    for first, x, y in _parts(split.samples):
        try:
            task.accept(y)
        except UserError as error:
            raise UserError(f"{name}: {error}") from error
        for what, values in (("inputs", x), ("labels", y)):
            if on_nan == "skip" or (what == "labels" and own_labels) or values.isfinite().all():
                continue
            finite = values.isfinite().flatten(1).all(1) if values.ndim > 1 else values.isfinite()
            raise UserError(
                f"{name}: {what} hold NaN or infinity, the first in sample"
                f" {first + int(finite.long().argmin())}; clean them"
            )


def _parts(samples: Samples) -> Iterator[tuple[int, Tensor, Tensor]]:
    """Index of the first sample, inputs and labels; a mapped file is read part by part."""
    if not isinstance(samples, TensorSamples):
        with generators_kept():
            pairs = [samples[index] for index in range(min(2, len(samples)))]
        xs, ys = zip(*pairs, strict=True)
        yield 0, torch.stack(xs), torch.stack(ys)
        return
    size = max(1, _PART // max(1, samples.x[0].numel()))
    for first in range(0, len(samples), size):
        yield first, samples.x[first : first + size], samples.y[first : first + size]


def _check_alike(train: Form, test: Form) -> None:
    same = train.x_shape == test.x_shape and train.y_shape == test.y_shape
    kinds = [(f.x_dtype.is_floating_point, f.y_dtype.is_floating_point) for f in (train, test)]
    if not same or kinds[0] != kinds[1]:
        raise UserError(
            f"test data must look like training data: got {test} for a test sample, and {train} for"
            f" a training sample; crop, pad or convert one of them"
        )


def _try_functions(objects: Given, task: Task, train: GivenSamples) -> None:
    """A loss and a metric of the program's own, on two samples."""
    with generators_kept():
        pairs = [train.samples[index] for index in range(len(objects.example))]
    labels = task.accept(torch.stack([y for _, y in pairs]))
    outputs = torch.zeros(len(labels), *task.output_shape, requires_grad=True)
    for key, function in (("loss", objects.loss), ("metric", objects.metric)):
        if function is None:
            continue
        got = _called(key, function, outputs, labels)
        if key == "loss" and not (
            isinstance(got, Tensor) and got.shape == () and got.requires_grad
        ):
            shape = f" {list(got.shape)}" if isinstance(got, Tensor) else ""
            raise UserError(
                f"loss: must return a scalar tensor that depends on the outputs, got"
                f" {type(got).__name__}{shape} for outputs {list(outputs.shape)}; take its mean"
            )


def _called(
    key: str, function: Callable[[Tensor, Tensor], Any], outputs: Tensor, labels: Tensor
) -> Any:  # noqa: ANN401 (whatever it gives)
    if not callable(function):
        raise UserError(
            f"{key}: must be a function of outputs and labels, got {function!r}; pass one, such as"
            f" torch.nn.functional.mse_loss"
        )
    try:
        with torch.enable_grad():
            got = function(outputs if key == "loss" else outputs.detach(), labels)
        return got if key == "loss" else float(got)
    except Exception as error:  # the program's own code
        raise UserError(
            f"{key}: cannot be called with outputs {list(outputs.shape)} and labels"
            f" {list(labels.shape)} {labels.dtype} ({reason(error)}); fix it, or the data"
        ) from error


def merged(tree: Tree, sections: Mapping[str, Any]) -> Tree:
    """Return the tree with the sections of a call put into it, key by key."""
    merged = dict(tree)
    for name, value in sections.items():
        both = isinstance(value, Mapping) and isinstance(merged.get(name), dict)
        merged[name] = {**merged[name], **value} if both else value
    return merged
