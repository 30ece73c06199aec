"""`fit`: train a program's own model on its own data, on any number of stages, in a few lines."""

from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from pipeline_local import agreement, configfile, finished, trainer
from pipeline_local.callbacks import Callback, Run
from pipeline_local.config import Config
from pipeline_local.data.datasets import DataInfo, GivenData
from pipeline_local.data.given import Given as GivenSamples
from pipeline_local.data.given import given
from pipeline_local.data.samples import Form
from pipeline_local.errors import EXIT_USER_ERROR, RefusedElsewhereError, UserError
from pipeline_local.given import Given, Loss, as_weights, handed, like
from pipeline_local.layout import Layout
from pipeline_local.learning.tasks import Task
from pipeline_local.models import given as given_models
from pipeline_local.placement.draw import make_task
from pipeline_local.ranks.call import on_ranks
from pipeline_local.ranks.caller import undisturbed
from pipeline_local.ranks.rank import RankInfo
from pipeline_local.record.folder import FREE, RunFolder, first_free
from pipeline_local.registry import GIVEN, reason
from pipeline_local.seeds import generators_kept
from pipeline_local.watch.store import Facts

MakeOptimizer = Callable[[Iterable[nn.Parameter]], torch.optim.Optimizer]


@undisturbed
def fit(
    model: given_models.Given,
    train: object,
    test: object,
    /,
    *,
    stages: int | None = None,
    modules: int | None = None,
    epochs: int | None = None,
    batch_size: int | None = None,
    loss: Loss | None = None,
    metric: Callable[[Tensor, Tensor], Any] | None = None,
    task: str | Mapping[str, Any] | Task | None = None,
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
        batch_size: samples per optimizer step; None: the DataLoader's, else 128, or all samples if
            there are fewer.
        loss: outputs [B, ...] and labels [B, ...] -> scalar, a mean over the batch; None: the
            task's.
        metric: of the same arguments, any number that is a mean over the batch; None: the task's.
        task: classification, regression, multi_label, dense or next_token, or a mapping with its
            name and options, or a `Task`; None: by the labels. Whole numbers are classes, maps
            [H, W] of them dense, tokens [T] with outputs [T, V] next_token; floating-point numbers
            are regression.
        optimizer: a name (`optimizer.name`), or what makes an optimizer of a module's parameters.
        lr: highest learning rate; None: the optimizer's own, else 0.1. Groups of parameters keep
            the ratios of their rates.
        schedule: a name (`optimizer.schedule`), or (step, num_steps) -> factor of the rate.
        layout: of the activations, where it cannot be seen: NCHW, NHWC, NCT, NTC or NC.
        callbacks: are called at the points of the run plan, on every rank.
        run_dir: the run folder, never overwritten; None: runs/fit, or runs/fit-2 and so on where
            that is taken.
        resume: go on from its newest checkpoint.
        sections: further keys of the configuration, such as `head={"name": "linear"}`,
            `reconcile={"weight": 0.1}`, `train={"seed": 1}`, `precision="bfloat16"`.

    Returns:
        What summary.json holds, on every rank.

    Raises:
        UserError: what the user must change, in one line.
        StoppedError: a signal has asked to stop, and all ranks have saved the same step.
        RuntimeError: a rank that was started here has failed.

    Example:
        >>> summary = fit(model, (x, y), (x_test, y_test), stages=2, epochs=3)
        >>> summary["accuracy"][-1]
    """
    _check_call(model, epochs, sections, callbacks)
    if resume and run_dir is None:
        raise UserError("resume: no run_dir was given; name the folder of the run to go on with")
    data = _given("train", train), _given("test", test)
    rank_info = RankInfo.from_environment()
    free = FREE if rank_info.launched else first_free()  # or the ranks might find different ones
    folder = RunFolder(free if run_dir is None else configfile.path("run_dir", run_dir))
    objects = Given(
        model=model,
        example=_example(data[0], model),
        layout=layout,
        task=task if isinstance(task, Task) else None,
        loss=loss,
        metric=metric,
        optimizer=None if isinstance(optimizer, str) else optimizer,
        schedule=None if isinstance(schedule, str) else schedule,
    )
    tree = {
        "model": {"name": GIVEN},
        "data": _data(data[0], batch_size),
        "task": _task(objects, task, data[0]),
        "modules": {"count": _num_modules(modules, stages, sections, rank_info, folder, resume)},
        "train": {} if epochs is None else {"epochs": epochs},
        "optimizer": _optimizer(optimizer, lr, schedule, objects),
        "parallel": {"stages": stages},
        "run": {"dir": folder.path, "resume": resume},
    }
    config = configfile.parse(_merged(tree, sections))
    return _run(_with_data(objects, config, *data), config, rank_info, callbacks)


def _run(
    objects: Given, config: Config, rank_info: RankInfo, callbacks: Sequence[Callback]
) -> Facts:
    """Train here or on new ranks; either way the model gets the weights."""
    with handed(objects):
        num_stages = rank_info.num_stages(config.parallel)
        if num_stages > rank_info.world_size:
            there = RankInfo(world_size=num_stages, local_world_size=num_stages)
            agreement.check(config, there)
            on_ranks(num_stages, partial(_on_rank, objects, config, tuple(callbacks)))
            summary = RunFolder(config.run.dir).load_summary()
        else:
            where = _Where(config.run.dir)
            try:
                summary = trainer.train(config, rank_info, (*callbacks, where))
            except RefusedElsewhereError:  # the first rank raises the reason
                raise SystemExit(EXIT_USER_ERROR) from None
            config = replace(config, run=replace(config.run, dir=where.folder))
        given_models.receive(objects.model, finished.load_parts(config.run.dir))
    return summary


class _Where(Callback):
    """Learns which folder the first rank has found free."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def on_start(self, run: Run, step: int) -> None:
        """Before the first step."""
        self.folder = run.folder


@undisturbed
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
    folder = RunFolder(configfile.path("run", run))
    if model is None:
        parts = finished.load_parts(folder.path, step)
        named = OrderedDict((block.name.replace(".", "_"), part) for block, part in parts)
        return nn.Sequential(named).eval()
    folder.load_config()  # says what is no run folder
    with handed(like(model, DataInfo.from_json(folder.load_info()))):
        return given_models.receive(model, finished.load_parts(folder.path, step)).eval()


def _on_rank(objects: Given, config: Config, callbacks: Sequence[Callback]) -> None:
    with handed(objects):
        trainer.train(config, RankInfo.from_environment(), callbacks)


def _example(data: GivenSamples, model: given_models.Given) -> Tensor:
    """Two inputs of the data, in the precision of the model."""
    indices = range(min(2, len(data.samples)))
    with generators_kept():
        example = torch.stack([data.samples[index][0] for index in indices])
    if not example.isfinite().all():
        raise UserError("data: the first training samples hold NaN or infinity; clean them")
    return as_weights(example, model)


def _given(name: str, data: object) -> GivenSamples:
    try:
        return given(data)
    except UserError as error:
        raise UserError(f"{name}: {error}") from error


def _data(own: GivenSamples, batch_size: int | None) -> dict[str, Any]:
    usual = own.batch_size or min(128, len(own.samples))
    size = usual if batch_size is None else batch_size
    return {"name": GIVEN, "batch_size": size, "workers": own.workers or 0}


def _num_modules(
    modules: int | None,
    stages: int | None,
    sections: Mapping[str, Any],
    rank_info: RankInfo,
    folder: RunFolder,
    resume: bool,
) -> int | None:
    """As many as said, or as a run to be resumed has; else one per stage."""
    if modules is not None:
        return modules
    if resume and folder.config.is_file():
        return folder.load_config().modules.count
    named: int | None = _merged({}, sections).get("parallel", {}).get("stages")
    return stages or named or rank_info.world_size


def _check_call(
    model: given_models.Given,
    epochs: int | None,
    sections: Mapping[str, Any],
    callbacks: Sequence[Callback],
) -> None:
    """What a program can get wrong before anything is looked at."""
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


def _optimizer(
    optimizer: str | MakeOptimizer,
    lr: float | None,
    schedule: str | Callable[[int, int], float],
    objects: Given,
) -> dict[str, Any]:
    if not isinstance(optimizer, str):
        usual = _usual_rate(optimizer, objects)
        lr = usual if lr is None else lr
    return {
        "name": optimizer if isinstance(optimizer, str) else GIVEN,
        "lr": 0.1 if lr is None else lr,
        "schedule": schedule if isinstance(schedule, str) else GIVEN,
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


def _with_data(objects: Given, config: Config, train: GivenSamples, test: GivenSamples) -> Given:
    """The objects with both splits, once all of them fit each other."""
    _check_alike(train.form, test.form)
    outputs, size = objects.output_shape, config.data.batch_size
    num_classes = outputs[-1 if _is_language(objects, train) else 0]
    data = GivenData(train, test, num_classes, size, config.data.workers)
    with handed(objects):
        task = make_task(config, data.describe())
    _try_functions(objects, task, train)
    return replace(objects, data=replace(data, accept=task.accept))


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
    try:
        with torch.enable_grad():
            got = function(outputs if key == "loss" else outputs.detach(), labels)
        return got if key == "loss" else float(got)
    except Exception as error:  # the program's own code
        raise UserError(
            f"{key}: cannot be called with outputs {list(outputs.shape)} and labels"
            f" {list(labels.shape)} {labels.dtype} ({reason(error)}); fix it, or the data"
        ) from error


def _merged(tree: dict[str, Any], sections: Mapping[str, Any]) -> dict[str, Any]:
    """Sections are merged key by key."""
    merged = dict(tree)
    for name, value in sections.items():
        both = isinstance(value, Mapping) and isinstance(merged.get(name), dict)
        merged[name] = {**merged[name], **value} if both else value
    return merged
