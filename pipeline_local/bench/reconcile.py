"""What reconciliation costs, and how well its estimators agree with `exact`.

One module in the middle of the configured network takes the same optimizer steps under every
variant, from the same weights, on the same activations, labels and signal. Times are interleaved;
costs are ratios to the plain local step (discord neither computed nor compared).
"""

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from pipeline_local import newfile
from pipeline_local.bench.memory import peak_bytes
from pipeline_local.bench.timing import interleaved
from pipeline_local.blueprint.blueprint import Blueprint
from pipeline_local.config import Config, ReconcileConfig
from pipeline_local.data.datasets import DataInfo, describe
from pipeline_local.errors import UserError
from pipeline_local.learning.module import LocalModule
from pipeline_local.learning.step import Step
from pipeline_local.placement.draw import draw
from pipeline_local.ranks.rank import RankInfo


@dataclass(frozen=True)
class Row:
    """One variant, beside the plain local step.

    Attributes:
        seconds: median time of a step, amortised over `reconcile.every`.
        spread: largest minus smallest repetition, over the median.
        cost: seconds over the plain step's.
        memory: peak bytes of a reconciling step over the plain step's.
        cosine: of the added gradient with that of `exact`; 1 is agreement.
        norm_ratio: of the added gradient to that of `exact`.
    """

    variant: str
    seconds: float
    spread: float
    cost: float
    memory: float
    cosine: float
    norm_ratio: float


@dataclass(frozen=True)
class Boundary:
    """What a module meets in one step.

    Attributes:
        x: activations [B, ...].
        labels: [B].
        signal: of the upstream neighbour, shaped like x.
        lagged: message of the downstream neighbour; () behind the last module.
    """

    x: Tensor
    labels: Tensor
    signal: Tensor
    lagged: tuple[Tensor, ...]


def variants(own: ReconcileConfig) -> dict[str, ReconcileConfig]:
    """The plain step, the estimators at full strength, and the configuration's own choice."""
    full = replace(own, weight=own.weight or 0.01, every=1, fraction=1.0)
    exact = replace(full, estimator="exact", args={})
    finite = replace(full, estimator="finite_difference", args={})
    found = {
        "plain": replace(exact, weight=0.0),
        "exact": exact,
        "exact, every 8": replace(exact, every=8),
        "exact, a quarter, every 4": replace(exact, every=4, fraction=0.25),
        "finite_difference": finite,
        "finite_difference, every 4": replace(finite, every=4),
        "finite_difference, every 8": replace(finite, every=8),
        "shift, every 8": replace(full, estimator="shift", args={}, every=8),
    }
    if own.direction == "upstream":  # heads are cheap: always the whole batch, and never moved
        del found["exact, a quarter, every 4"], found["shift, every 8"]
    if own.weight and own not in found.values():
        found["configured"] = own
    return found


def report(config: Config, number: int | None, runs: int, output: Path | None) -> str:
    """Measure, write the rows as JSON if asked, and give a Markdown table under its setting.

    Raises:
        UserError: no such module, no repetition, or `output` exists already.
    """
    info = describe(config.data)
    num_modules = len(draw(config, info).modules)
    first, last, why = 2, num_modules, "the first one has no discord"
    if config.reconcile.direction == "upstream":
        first, last, why = 1, num_modules - 1, "nobody corrects the last one"
    number = first if number is None else number
    if not first <= number <= last:
        raise UserError(f"--module: from {first} to {last} ({why}), got {number}")
    if runs < 1:
        raise UserError(f"--runs: at least 1, got {runs}")
    if output is not None:
        newfile.check("--json", output)
    rank_info = RankInfo()
    rank_info.prepare(config.parallel)
    rows = measure(config, info, number - 1, runs, rank_info.device)
    if output is not None:
        newfile.write("--json", output, json.dumps([*map(asdict, rows)], indent=2) + "\n")
    setting = (
        f"{config.model.name}, module {number} of {num_modules}, head"
        f" {config.head.name}, batch {config.data.batch_size}, {config.precision},"
        f" {rank_info.device.type}, {torch.get_num_threads()} threads, torch {torch.__version__},"
        f" {runs} runs"
    )
    return f"{setting}\n\n{markdown(rows)}"


def measure(
    config: Config, info: DataInfo, index: int, runs: int, device: torch.device
) -> list[Row]:
    """Compare all variants on module `index` (from 0).

    Args:
        config: says network, cuts, heads, batch size, precision; compiled modules are compared with
            the exact gradient of uncompiled ones, and exact is not timed.
        info: facts of the data; images are drawn at random.
        index: of the module that is measured: one that gives way.
        runs: interleaved repetitions.
        device: where to run.
    """
    blueprint = draw(config, info)
    boundary = _meet(blueprint, index, device)
    settings = variants(config.reconcile)
    eager = replace(blueprint, config=replace(config, compile=False))
    exact = _added(eager, index, device, settings["exact"], boundary)
    if config.compile:  # compiled code has no second derivative
        settings = {name: own for name, own in settings.items() if not _is_exact(own)}
    modules = {name: _module(blueprint, index, device, own) for name, own in settings.items()}
    added = {
        name: _added(blueprint, index, device, own, boundary) for name, own in settings.items()
    }

    lengths = {name: settings[name].every for name in settings}
    work = {name: _repetition(modules[name], boundary, lengths[name]) for name in settings}
    times = interleaved(work, runs, device)
    peaks = {name: peak_bytes(_repetition(modules[name], boundary, 1), device) for name in settings}
    plain = times["plain"].median
    rows = []
    for name in settings:
        seconds = times[name].median / lengths[name]
        cosine, norm_ratio = _compare(added[name], exact)
        cost, memory = seconds / plain, peaks[name] / peaks["plain"]
        rows.append(Row(name, seconds, times[name].spread, cost, memory, cosine, norm_ratio))
    return rows


def _is_exact(own: ReconcileConfig) -> bool:
    return own.weight > 0 and own.estimator == "exact"


def markdown(rows: Sequence[Row]) -> str:
    """The rows as a table."""
    lines = [
        "| variant | ms per step | spread | cost | peak memory | cosine with exact | norm ratio |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        agreement = "" if row.variant == "plain" else f"{row.cosine:.3f} | {row.norm_ratio:.2f}"
        lines.append(
            f"| {row.variant} | {1000 * row.seconds:.1f} | {row.spread:.0%} | {row.cost:.2f}x |"
            f" {row.memory:.2f}x | {agreement or ' | '} |"
        )
    return "\n".join(lines)


def _meet(blueprint: Blueprint, index: int, device: torch.device) -> Boundary:
    """Run the modules above on random images: their real activations, and their real signal."""
    info, config = blueprint.info, blueprint.config
    size = config.data.batch_size // config.train.microbatches
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(size, *info.image_shape, generator=generator).to(device, blueprint.dtype)
    labels = blueprint.task.example_labels(size, generator).to(device)
    inputs, signals, lagged = [x], [x], []
    for number in range(min(index + 2, len(blueprint.modules))):
        module = blueprint.module(number, device)
        inputs.append(module(inputs[-1], labels, Step(0, 0.0, send_lagged=True)))
        signals.append(module.signal())
        lagged.append(module.learn())
    below = lagged[index + 1] if index + 1 < len(lagged) else ()
    return Boundary(inputs[index], labels, signals[index], below)


def _module(
    blueprint: Blueprint, index: int, device: torch.device, own: ReconcileConfig
) -> LocalModule:
    return replace(blueprint, config=replace(blueprint.config, reconcile=own)).module(index, device)


def _acts(module: LocalModule, boundary: Boundary, number: int, lr: float) -> Step:
    """Everything of a step but the update."""
    own = module.rules.reconcile
    due = own.weight > 0 and number % own.every == 0
    down, up = due and own.direction != "upstream", due and own.direction != "downstream"
    step = Step(number, lr, reconcile=down, compare=down, send_lagged=up, apply_lagged=up)
    module(boundary.x, boundary.labels, step)
    module.signal()
    if down:
        module.receive(boundary.signal)
    module.learn()
    if up:
        module.apply_lagged(step, *boundary.lagged)
    return step


def _repetition(module: LocalModule, boundary: Boundary, steps: int) -> Callable[[], None]:
    """A run of steps whose first one reconciles; tiny rates, so that all repetitions are alike."""

    def work() -> None:
        for number in range(steps):
            module.update(_acts(module, boundary, number, lr=1e-8))

    return work


def _added(
    blueprint: Blueprint,
    index: int,
    device: torch.device,
    own: ReconcileConfig,
    boundary: Boundary,
) -> Tensor:
    """What one reconciling step adds to the gradient, over its strength, as one vector."""
    vectors = []
    for weight in (own.weight, 0.0):
        module = _module(blueprint, index, device, replace(own, weight=weight))
        _acts(module, boundary, 0, lr=0.0)
        vectors.append(torch.cat([g.double().flatten() for g in module.gradients]))
    return (vectors[0] - vectors[1]) / (own.strength or 1.0)


def _compare(added: Tensor, reference: Tensor) -> tuple[float, float]:
    norms = added.norm().item(), reference.norm().item()
    if not norms[0]:
        return 0.0, 0.0
    return (added @ reference).item() / (norms[0] * norms[1]), norms[0] / norms[1]
