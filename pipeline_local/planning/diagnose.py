"""Do the modules pull the way backpropagation would? Local gradients beside the true global one.

Local learning replaces the global gradient of a body's weights by the gradient of a local loss.
Reconciliation asks each module's input gradient to match the signal of the module above, so that
the local updates descend the later losses too. For a checkpoint and some batches, this measures
both: how well neighbours agree, and what that buys in agreement with the last module's loss.

As trained, but for what is random in the layers: batch norms use the batch's statistics and keep
their running ones, dropout and stochastic depth are off, and everything runs in the precision of
the parameters, nothing rounded between modules. Nothing learns: no weight, no statistic and no file
of the run changes.
"""

import json
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import fmean

import torch
from rich.table import Table
from torch import Tensor, nn
from torch.autograd import grad

from pipeline_local import finished, newfile
from pipeline_local.blueprint.blueprint import Blueprint
from pipeline_local.errors import UserError
from pipeline_local.learning.body import FrozenStatistics
from pipeline_local.learning.comparison import Comparison, compare
from pipeline_local.learning.module import LocalModule
from pipeline_local.learning.step import Step
from pipeline_local.pipeline.source import Source
from pipeline_local.placement.describe import describe
from pipeline_local.placement.placement import Placement
from pipeline_local.ranks.rank import RankInfo
from pipeline_local.screen import Screen

Batch = tuple[Tensor, Tensor]
"""Input [B, ...] of the first module; labels [B, ...] or soft targets [B, classes]."""


@dataclass(frozen=True)
class Row:
    """One module; means over the batches. A cosine with a vanishing gradient is 0.

    Attributes:
        module: its number, from 1.
        gradient: cosine of the local gradient of the body's parameters with the global one, over
            all of them together; None where the body has none.
        signal: cosine of the module's signal s with the global gradient at the same activations,
            mean over samples.
        discord: at the module's input: mean over samples of |g - s of the module above|^2; None
            for the first module.
        cosine: of that g with that s, mean over samples; None for the first module.
    """

    module: int
    gradient: float | None
    signal: float
    discord: float | None
    cosine: float | None


def diagnose(run: Path, num_batches: int, output: Path | None) -> list[Row]:
    """Measure the newest checkpoint of a run; show a table, and write it as JSON if asked.

    Args:
        run: a finished or interrupted run's folder; nothing in it changes.
        num_batches: training batches, augmented: those of the steps right after the checkpoint.
        output: a new file.

    Raises:
        UserError: no run, no complete checkpoint, no batch, or `output` exists already.
    """
    if num_batches < 1:
        raise UserError(f"--batches: at least 1, got {num_batches}")
    if output is not None:
        newfile.check("--json", output)
    rank_info = RankInfo()
    device = rank_info.device
    blueprint, modules, step = finished.load(run, device)
    rank_info.prepare(blueprint.config.parallel)
    rows = measure(modules, _upcoming(blueprint, step, num_batches, device))
    blocks = [row.blocks for row in describe(Placement.of(blueprint, 1))]
    _show(rows, blocks, f"Gradients after step {step}, {num_batches} batches")
    if output is not None:
        facts = {"step": step, "batches": num_batches, "modules": [asdict(row) for row in rows]}
        newfile.write("--json", output, json.dumps(facts, indent=2) + "\n")
    return rows


def measure(modules: Sequence[LocalModule], batches: Iterable[Batch]) -> list[Row]:
    """Compare local and global gradients; the modules are left as they were.

    Needs the memory of backpropagation through all modules at once.

    Args:
        modules: all K, in order, on one device.
        batches: at least one.
    """
    with ExitStack() as stack:
        # compiled blocks give their activations away after one backward, and here there are two
        stack.enter_context(torch.compiler.set_stance("force_eager"))
        for module in modules:
            stack.enter_context(_without_randomness(module))
            stack.enter_context(FrozenStatistics(module))
        per_batch = [_compare(modules, x, labels) for x, labels in batches]
    return [_mean(rows) for rows in zip(*per_batch, strict=True)]


@dataclass(frozen=True)
class _Link:
    """A module's part of the graph through all bodies."""

    params: list[nn.Parameter]
    x: Tensor
    y: Tensor
    loss: Tensor


@dataclass(frozen=True)
class _Gradients:
    """Of one loss: at a module's input and output, and for its body's parameters."""

    x: Tensor
    y: Tensor
    params: Sequence[Tensor]


def _compare(modules: Sequence[LocalModule], x: Tensor, labels: Tensor) -> list[Row]:
    """One batch: a single graph, so that both kinds of gradients see the same activations."""
    links = list(_chain(modules, x, labels))
    local = [_gradients(link.loss, link) for link in links]
    true = [_gradients(links[-1].loss, link) for link in links]
    rows = []
    for index, (own, wanted) in enumerate(zip(local, true, strict=True)):
        above = _agreement(own.x, local[index - 1].y) if index else None
        rows.append(
            Row(
                module=index + 1,
                gradient=_cosine(own.params, wanted.params),
                signal=_agreement(own.y, wanted.y).cosine.item(),
                discord=above.discord.item() if above else None,
                cosine=above.cosine.item() if above else None,
            )
        )
    return rows


def _chain(modules: Sequence[LocalModule], x: Tensor, labels: Tensor) -> Iterator[_Link]:
    x = x.detach().requires_grad_()
    for module in modules:
        y = module.body(x)
        loss = module.rules.task.loss(module.head(y), labels)
        yield _Link([p for p in module.body.parameters() if p.requires_grad], x, y, loss)
        x = y


def _gradients(loss: Tensor, link: _Link) -> _Gradients:
    wanted = [link.x, link.y, *link.params]
    x, y, *params = grad(loss, wanted, retain_graph=True, materialize_grads=True)
    return _Gradients(x, y, params)


def _agreement(g: Tensor, s: Tensor) -> Comparison:
    """In float64: where a sample is certain, squares of its gradients vanish in float32."""
    return compare(g.double(), s.double())


def _cosine(a: Sequence[Tensor], b: Sequence[Tensor]) -> float | None:
    """Of two lists of tensors, each as one vector; exactly 1 where they are equal."""
    if not a:
        return None
    u, v = (torch.cat([t.flatten().double() for t in vectors]) for vectors in (a, b))
    lengths = ((u * u).sum() * (v * v).sum()).sqrt().item()
    return (u * v).sum().item() / lengths if lengths else 0.0


def _mean(rows: Sequence[Row]) -> Row:
    """Of one module over the batches; what is None in one is None in all."""

    def over(values: Iterable[float | None]) -> float | None:
        numbers = [value for value in values if value is not None]
        return fmean(numbers) if numbers else None

    return Row(
        module=rows[0].module,
        gradient=over(row.gradient for row in rows),
        signal=fmean(row.signal for row in rows),
        discord=over(row.discord for row in rows),
        cosine=over(row.cosine for row in rows),
    )


@contextmanager
def _without_randomness(module: nn.Module) -> Iterator[None]:
    """Evaluation mode, except for the norms that gather statistics: those train."""
    modes = [(layer, layer.training) for layer in module.modules()]
    for layer, _ in modes:
        layer.training = bool(getattr(layer, "track_running_stats", False))
    try:
        yield
    finally:
        for layer, mode in modes:
            layer.training = mode


def _upcoming(
    blueprint: Blueprint, step: int, num_batches: int, device: torch.device
) -> Iterator[Batch]:
    """The batches of the steps from `step` on, as training would get them: in microbatches."""
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


def _show(rows: Sequence[Row], blocks: Sequence[str], title: str) -> None:
    """Print a table; columns of cosines, and the discord between them."""
    table = Table(title=title, title_justify="left")
    table.add_column("\nmodule", justify="right")
    table.add_column("\nblocks")
    for column in ("local,\nglobal", "s,\nglobal", "g,\ns above", "\ndiscord"):
        table.add_column(column, justify="right")
    for row, names in zip(rows, blocks, strict=True):
        cosines = (row.gradient, row.signal, row.cosine)
        numbers = ["" if value is None else f"{value:+.3f}" for value in cosines]
        discord = "" if row.discord is None else f"{row.discord:.4g}"
        table.add_row(str(row.module), names, *numbers, discord)
    console = Screen()
    console.print(table)
    console.print(
        "Cosines: of the body's local with its global gradient; of the signal with the global"
        " gradient at the module's output; of its input gradient with the signal from above.",
        soft_wrap=True,
    )
