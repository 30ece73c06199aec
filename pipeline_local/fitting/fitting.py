"""`fit`: train a program's own model on its own data, on any number of stages, in a few lines."""

from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from inspect import signature
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from pipeline_local.config import Config, RunConfig
from pipeline_local.configfile import configfile
from pipeline_local.engines.optimizer import MakeOptimizer
from pipeline_local.errors import EXIT_USER_ERROR, RefusedElsewhereError, UserError
from pipeline_local.finished import finished
from pipeline_local.finished.exits.network import ExitNetwork
from pipeline_local.finished.exits.network import check as check_exit
from pipeline_local.fitting import arguments, checking
from pipeline_local.fitting.arguments import Schedule
from pipeline_local.given.given import Given, Loss, handed
from pipeline_local.layout import Layout
from pipeline_local.learning.tasks import Task
from pipeline_local.models import given as given_models
from pipeline_local.ranks.call import on_ranks
from pipeline_local.ranks.caller import undisturbed
from pipeline_local.ranks.rank import RankInfo
from pipeline_local.record.folder import RunFolder
from pipeline_local.record.free import FREE, reserved
from pipeline_local.training import preflight
from pipeline_local.training.callbacks import Callback, Run, listed
from pipeline_local.training.train import train
from pipeline_local.user_input.json_text import Facts


@undisturbed
def fit(
    model: given_models.GivenModel,
    train: object,
    test: object,
    /,
    *,
    stages: int | None = None,
    modules: int | Mapping[str, Any] | None = None,
    epochs: int | None = None,
    batch_size: int | None = None,
    loss: Loss | None = None,
    metric: Callable[[Tensor, Tensor], Any] | None = None,
    task: str | Mapping[str, Any] | Task | None = None,
    optimizer: str | Mapping[str, Any] | MakeOptimizer = "sgd",
    lr: float | None = None,
    schedule: str | Schedule = "cosine",
    layout: Layout | None = None,
    callbacks: Sequence[Callback] = (),
    run_dir: str | Path | None = None,
    resume: bool = False,
    **sections: Any,  # noqa: ANN401 (any keys of the configuration)
) -> Facts:
    """Train a model by local learning, on one or several stages, and leave its weights in it.

    Args:
        model: an `nn.Module`, or its blocks in order; training starts at its weights.
        train, test: (x, y) arrays or pandas objects, map-style `Dataset`, `DataLoader` or a Hugging
            Face data set.
        stages: ranks in a chain, started here or by a launcher; None: the launcher's, or 1.
        modules: gradient-isolated parts (K), each with a local loss, or a mapping with the keys of
            that section (`{"count": 4, "recompute": True}`); None: one per stage.
        epochs: passes over the training data; or give `train={"steps": ...}`.
        batch_size: samples per optimizer step; None: the DataLoader's, else at most 128.
        loss: outputs [B, ...], labels [B, ...] -> scalar, a mean over the batch; None: the task's.
        metric: the same with any number as its result; None: the task's.
        task: a name, a mapping with its name and options, or a `Task`; None: by the labels.
        optimizer: a name (`optimizer.name`), or parameters of a module -> its optimizer, or a
            mapping with either as its `name` and further keys of that section, such as `clip`.
        lr: highest learning rate; None: the optimizer's own, else 0.1.
        schedule: a name (`optimizer.schedule`), or (step, num_steps) -> factor of the rate.
        layout: of the activations, where it cannot be seen: NCHW, NHWC, NCT, NTC or NC.
        callbacks: are called at the points of the run plan, on every rank.
        run_dir: the run folder, never overwritten; None: runs/fit, or runs/fit-2 and so on.
        resume: go on from the newest checkpoint in `run_dir`.
        sections: further sections of the configuration, such as `head={"name": "linear"}`.

    Returns:
        What summary.json holds, on every rank: summary["accuracy"][-1] is the last head's.

    Raises:
        UserError: a mistake: what to change, in one line.
        StoppedError: a signal has asked to stop, and all ranks have saved the same step.
        RuntimeError: a rank that was started here has failed.

    Example:
        >>> layers = nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 10)
        >>> model = nn.Sequential(*layers)
        >>> summary = fit(model, (x, y), (x, y), modules=2, epochs=2, run_dir="runs/digits")
        >>> len(summary["accuracy"])
        2
    """
    callbacks = listed(callbacks)
    own = [p.name for p in signature(fit).parameters.values() if p.kind is p.KEYWORD_ONLY]
    arguments.check(model, epochs, sections, own)
    arguments.check_task(task, loss, metric)
    optimizer, lr, schedule, more = arguments.updates(optimizer, lr, schedule)
    data = arguments.samples("train", train), arguments.samples("test", test)
    objects = arguments.collected(model, data[0], task, loss, metric, optimizer, schedule, layout)
    tree = arguments.learned(objects, data[0], task, batch_size)
    tree |= arguments.updated(objects, optimizer, lr, schedule, epochs)
    tree["optimizer"] |= more
    with _place(run_dir, resume) as place:
        tree |= arguments.placed(place, modules, stages, sections)
        config = configfile.parse(arguments.merged(tree, sections))
        return _run(checking.with_data(objects, config, *data), config, callbacks)


@contextmanager
def _place(run_dir: str | Path | None, resume: bool) -> Iterator[RunConfig]:
    """The run folder: the one that is named, or one that is free."""
    if run_dir is not None:
        yield RunConfig(configfile.path("run_dir", run_dir), resume)
    elif resume:
        raise UserError("resume: no run_dir was given; name the folder of the run to go on with")
    elif RankInfo.from_environment().launched:  # ranks might find different ones: the first chooses
        yield RunConfig(FREE)
    else:
        with reserved() as folder:
            yield RunConfig(folder)


def _run(objects: Given, config: Config, callbacks: Sequence[Callback]) -> Facts:
    """Train here or on new ranks; either way the model gets the weights."""
    rank_info = RankInfo.from_environment()
    with handed(objects):
        count = rank_info.mesh(config.parallel).num_ranks
        if count > rank_info.world_size:
            preflight.check(config, RankInfo.of_host(count))
            on_ranks(count, partial(_on_rank, objects, config, tuple(callbacks)))
            summary = RunFolder(config.run.dir).load_summary()
        else:
            where = _Where(config.run.dir)
            try:
                summary = train(config, rank_info, (*callbacks, where))
            except RefusedElsewhereError:  # the first rank raises the reason
                raise SystemExit(EXIT_USER_ERROR) from None
            config = replace(config, run=replace(config.run, dir=where.folder))
        # by its number: over NFS a listing of the folder may be older than the checkpoint
        given_models.receive(objects.model, finished.load_parts(config.run.dir, summary["steps"]))
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
    run: str | Path,
    model: given_models.GivenModel | None = None,
    step: int | str = "newest",
    exit: int | None = None,
) -> nn.Module:
    """Return the network of a run, with its trained weights, in evaluation mode on the CPU.

    Args:
        run: its folder.
        model: of a run that `fit` has made: a model like the one that was trained; it gets the
            weights. None: of any other run, the network is made anew from the configuration; it
            takes images that are normalised as in training (data.json has mean and deviation).
        step: of the checkpoint: "newest", a number of optimizer steps, or a name ("best").
        exit: the number of a module, from 1: the network ends with its head. It is an
            `ExitNetwork`, whose weights `export RUN --exit k` writes; a `model` stays as it is.

    Raises:
        UserError: no run, no such checkpoint or module, or the model is another one.

    Example:
        >>> layers = nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 10)
        >>> model = nn.Sequential(*layers)
        >>> summary = fit(model, (x, y), (x, y), modules=2, epochs=1, run_dir="runs/loaded")
        >>> network = load("runs/loaded", model)
        >>> network(torch.rand(5, 64)).shape
        torch.Size([5, 10])
    """
    folder = RunFolder(configfile.path("run", run))
    with finished.standing_in(folder, model):
        if exit is not None:
            _, modules, _ = finished.load(folder.path, step=step, compiled=False)
            return ExitNetwork(modules[: check_exit("exit", exit, len(modules))])
        parts = finished.load_parts(folder.path, step)
        if model is not None:
            return given_models.receive(model, parts).eval()
    named = OrderedDict((block.name.replace(".", "_"), part) for block, part in parts)
    return nn.Sequential(named).eval()


def _on_rank(objects: Given, config: Config, callbacks: Sequence[Callback]) -> None:
    with handed(objects):
        train(config, RankInfo.from_environment(), callbacks)
