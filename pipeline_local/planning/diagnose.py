"""Compares local gradients with the global gradient of backpropagation.

Local learning replaces the global gradient of a body's weights by the gradient of a local loss.
Reconciliation pulls each module's input gradient towards the signal of its upstream neighbour, so
that local updates also reduce the later losses. For a checkpoint and some batches, this measures
both: how well neighbours agree, and how well local gradients agree with that of the last loss.

Modules run as in training, but without randomness: batch norms use the batch's statistics and keep
their running ones, dropout and stochastic depth are off. Everything runs in the precision of the
parameters, and nothing is rounded between modules. No weight, no statistic and no file of the run
changes.
"""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from statistics import fmean
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd import grad

from pipeline_local import seeds
from pipeline_local.blueprint.blueprint import Blueprint
from pipeline_local.console.screen import Screen, new_table
from pipeline_local.errors import UserError, counted
from pipeline_local.finished import finished
from pipeline_local.learning.comparison import Comparison, compare
from pipeline_local.learning.compiler import eagerly
from pipeline_local.learning.information import local_loss
from pipeline_local.learning.module import LocalModule
from pipeline_local.learning.step import Step
from pipeline_local.pipeline.source import Source
from pipeline_local.placement.describe import describe
from pipeline_local.placement.placement import Placement
from pipeline_local.ranks.caller import undisturbed
from pipeline_local.ranks.rank import RankInfo
from pipeline_local.side_effects.untouched import Buffers, modes_kept
from pipeline_local.user_input import new_file

Batch = tuple[Tensor, Tensor]
"""Input [B, ...] of the first module, and labels [B, ...] or soft targets [B, classes]."""


@dataclass(frozen=True)
class GradientRow:
    """The gradients of one module, as means over the batches. A cosine with a zero gradient is 0.

    Attributes:
        module: number of the module, from 1.
        gradient: cosine of the local and the global gradient of all parameters of the body; None
            where the body has none.
        signal: cosine of the module's signal and the global gradient at the same activations, mean
            over samples.
        discord: |g - s|^2 at the module's input, for its input gradient g and the signal s of its
            upstream neighbour, mean over samples; None for the first module.
        cosine: cosine of that g and that s, mean over samples; None for the first module.
    """

    module: int
    gradient: float | None
    signal: float
    discord: float | None
    cosine: float | None


@undisturbed
def diagnose(
    run: Path, num_batches: int, output: Path | None, overrides: Sequence[str] = ()
) -> list[GradientRow]:
    """Measure the newest checkpoint of a run, print a table, and write it as JSON if asked.

    Args:
        run: folder of a finished or interrupted run; nothing in it changes.
        num_batches: number of training batches, augmented: those of the steps right after the
            checkpoint.
        output: a new JSON file, or None.
        overrides: `key=value`, of `finished.READING` alone.

    Raises:
        UserError: there is no run, no complete checkpoint or no batch, `output` exists already, or
            the data is not what the run was trained on.
    """
    if num_batches < 1:
        raise UserError(f"--batches: at least 1, got {num_batches}")
    if output is not None:
        new_file.check("--json", output)
    rank_info = RankInfo()
    device = rank_info.device
    blueprint, modules, step = finished.load(run, device)
    blueprint = finished.reading(blueprint, run, overrides, "train", finished.READING)
    rank_info.prepare(blueprint.config.parallel)
    blueprint.task.differentiates_twice = True
    rows = measure(modules, _upcoming(blueprint, step, num_batches, device))
    blocks = [row.blocks for row in describe(Placement.of(blueprint, 1))]
    _show(rows, blocks, f"Gradients after step {step}, {counted(num_batches, 'batch', 'batches')}")
    if output is not None:
        facts = {"step": step, "batches": num_batches, "modules": [asdict(row) for row in rows]}
        new_file.write_json("--json", output, facts)
    return rows


def measure(modules: Sequence[LocalModule], batches: Iterable[Batch]) -> list[GradientRow]:
    """Compare local and global gradients; nothing of the modules changes.

    It needs the memory of backpropagation through all modules at once.

    Args:
        modules: all K modules, in order, on one device.
        batches: at least one batch.
    """
    with ExitStack() as stack:
        stack.enter_context(seeds.generators_kept())
        seeds.seed_generators(0)
        # compiled blocks free their activations after one backward pass, and here are two
        for module in modules:
            stack.enter_context(eagerly(module))
            stack.enter_context(_without_randomness(module))
            stack.enter_context(Buffers(module).again())
        per_batch = [_compare(modules, x, labels) for x, labels in batches]
    return [_mean(rows) for rows in zip(*per_batch, strict=True)]


@dataclass(frozen=True)
class _ModuleGraph:
    """One module's part of the autograd graph through all bodies."""

    params: list[nn.Parameter]
    x: Tensor
    y: Tensor
    loss: Tensor


@dataclass(frozen=True)
class _Gradients:
    """The gradients of one loss at a module's input and output, and for its body's parameters; at
    the first module's input, with which no neighbour is compared, they may be anything."""

    x: Tensor
    y: Tensor
    params: Sequence[Tensor]


def _compare(modules: Sequence[LocalModule], x: Tensor, labels: Tensor) -> list[GradientRow]:
    """Compare on one batch, in a single graph: both kinds of gradients see the same activations."""
    graphs = list(_chain(modules, x, labels))
    local = [_gradients(graph.loss, graph) for graph in graphs]
    global_ = [_gradients(graphs[-1].loss, graph) for graph in graphs]
    rows = []
    for index, (own, true) in enumerate(zip(local, global_, strict=True)):
        neighbours = _agreement(own.x, local[index - 1].y) if index else None
        rows.append(
            GradientRow(
                module=index + 1,
                gradient=_cosine(own.params, true.params),
                signal=_agreement(own.y, true.y).cosine.item(),
                discord=neighbours.discord.item() if neighbours else None,
                cosine=neighbours.cosine.item() if neighbours else None,
            )
        )
    return rows


def _chain(modules: Sequence[LocalModule], x: Tensor, labels: Tensor) -> Iterator[_ModuleGraph]:
    x = x.detach().requires_grad_(x.is_floating_point())
    for module in modules:
        y = module.body(x)
        if not y.requires_grad:  # of ids, by nothing that is trained: a tied embedding's copy
            y = y.detach().requires_grad_()
        head, task = module.head, module.rules.task  # which is to be differentiated twice by now
        loss = local_loss(head, task.reader(head), task, y, labels, x).total
        yield _ModuleGraph([p for p in module.body.parameters() if p.requires_grad], x, y, loss)
        x = y


def _gradients(loss: Tensor, graph: _ModuleGraph) -> _Gradients:
    given = graph.x if graph.x.requires_grad else graph.y  # tokens have no gradient
    inputs = [given, graph.y, *graph.params]
    x, y, *params = grad(loss, inputs, retain_graph=True, materialize_grads=True)
    return _Gradients(x, y, params)


def _agreement(g: Tensor, s: Tensor) -> Comparison:
    """Compare in float64: squares of the gradients of confident samples underflow in float32."""
    return compare(g.double(), s.double())


def _cosine(a: Sequence[Tensor], b: Sequence[Tensor]) -> float | None:
    """The cosine of two lists of tensors, each as one vector; exactly 1 where they are equal."""
    if not a:
        return None
    u, v = (torch.cat([t.flatten().double() for t in vectors]) for vectors in (a, b))
    lengths = ((u * u).sum() * (v * v).sum()).sqrt().item()
    return (u * v).sum().item() / lengths if lengths else 0.0


def _mean(rows: Sequence[GradientRow]) -> GradientRow:
    """The means for one module over the batches; what is None in one is None in all."""
    means: dict[str, Any] = {}
    for name in ("gradient", "signal", "discord", "cosine"):
        values = [getattr(row, name) for row in rows]
        means[name] = None if None in values else fmean(values)
    return replace(rows[0], **means)


@contextmanager
def _without_randomness(module: nn.Module) -> Iterator[None]:
    """Evaluation mode, except for norms that keep running statistics: these stay in training."""
    with modes_kept(module):
        for layer in module.modules():
            layer.training = layer.training and bool(getattr(layer, "track_running_stats", False))
        yield


def _upcoming(
    blueprint: Blueprint, step: int, num_batches: int, device: torch.device
) -> Iterator[Batch]:
    """The microbatches that training would receive in the next steps."""
    parts = blueprint.config.train.microbatches
    steps = range(step, step + num_batches)
    actions = [Step(number, lr=0.0, microbatches=parts) for number in steps]
    source = Source(blueprint.config, blueprint.info, actions, steps, device, blueprint.dtype)
    try:
        for _ in range(num_batches * parts):
            x, labels = source.recv()
            yield x, labels
    finally:
        source.close()


def _show(rows: Sequence[GradientRow], blocks: Sequence[str], title: str) -> None:
    """Print a table of cosines and discords."""
    table = new_table(title)
    table.add_column("\nmodule", justify="right")
    table.add_column("\nblocks")
    for column in ("local,\nglobal", "s,\nglobal", "g,\ns upstream", "\ndiscord"):
        table.add_column(column, justify="right")
    for row, names in zip(rows, blocks, strict=True):
        cosines = (row.gradient, row.signal, row.cosine)
        numbers = ["" if value is None else f"{value:+.3f}" for value in cosines]
        discord = "" if row.discord is None else f"{row.discord:.4g}"
        table.add_row(str(row.module), names, *numbers, discord)
    console = Screen()
    console.print(table)
    console.sentence(
        "Cosines: the body's local and global gradient; the signal s and the global gradient at the"
        " module's output; its input gradient g and the signal s of its upstream neighbour."
    )
