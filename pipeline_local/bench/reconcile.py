"""What reconciliation costs, and how well its estimators agree with `exact`.

One module of the configured network takes the same optimizer steps under every variant, from the
same weights, on the same activations, labels and signal. Variants are interleaved; costs are ratios
to a plain local step, in which the discord is not computed.
"""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from pipeline_local.bench.memory import peak_bytes
from pipeline_local.bench.timing import interleaved
from pipeline_local.blueprint.blueprint import Blueprint
from pipeline_local.blueprint.run_plan import microbatch_size
from pipeline_local.config import Config, ReconcileConfig
from pipeline_local.console.screen import markdown_table
from pipeline_local.data.datasets import describe
from pipeline_local.data.info import DataInfo
from pipeline_local.errors import UserError, counted
from pipeline_local.learning.contents import Feedback
from pipeline_local.learning.lag_plan import LagPlan
from pipeline_local.learning.lagged import LaggedMessages
from pipeline_local.learning.module import LocalModule
from pipeline_local.learning.step import Step
from pipeline_local.placement.draw import draw
from pipeline_local.ranks.rank import RankInfo
from pipeline_local.user_input import new_file


@dataclass(frozen=True)
class ReconcileRow:
    """The results of one variant, compared with the plain local step.

    Attributes:
        variant: name of the variant.
        seconds: median seconds of a step, amortised over `reconcile.every`.
        spread: slowest minus fastest repetition, over the median.
        cost: seconds over those of the plain step.
        memory: peak bytes of a step that reconciles, over those of the plain step.
        cosine: cosine of the added gradient and that of `exact`; 1 is full agreement.
        norm_ratio: norm of the added gradient over that of `exact`.
    """

    variant: str
    seconds: float
    spread: float
    cost: float
    memory: float
    cosine: float
    norm_ratio: float


@dataclass(frozen=True)
class StepInputs:
    """What a module receives in one step.

    Attributes:
        x: activations [B, ...].
        labels: labels [B, ...].
        signal: signal of the upstream neighbour, shaped like x.
        lagged: lagged message of the downstream neighbour; () for the last module.
    """

    x: Tensor
    labels: Tensor
    signal: Tensor
    lagged: tuple[Tensor, ...]


def variants(own: ReconcileConfig) -> dict[str, ReconcileConfig]:
    """Return the settings of the plain step, of all estimators, and the configured ones."""
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
    if own.direction == "upstream":  # heads take the whole batch, without `shift`
        del found["exact, a quarter, every 4"], found["shift, every 8"]
    if own.weight and own not in found.values():
        found["configured"] = own
    return found


def report(config: Config, number: int | None, runs: int, output: Path | None) -> str:
    """Measure, write the rows as JSON if asked, and return a Markdown table with its settings.

    Args:
        config: the configuration of the network.
        number: number of the module, from 1; None: the first one that is reconciled.
        runs: interleaved repetitions.
        output: JSON file for the rows, or None.

    Raises:
        UserError: there is no such module or no repetition, or `output` exists already.
    """
    info = describe(config.data)
    num_modules = len(draw(config, info).modules)
    first, last, why = 2, num_modules, "the first one has no discord"
    if config.reconcile.direction == "upstream":
        first, last, why = 1, num_modules - 1, "the last one has no downstream neighbour"
    number = first if number is None else number
    if not first <= number <= last:
        raise UserError(f"--module: from {first} to {last} ({why}), got {number}")
    if runs < 1:
        raise UserError(f"--runs: at least 1, got {runs}")
    if output is not None:
        new_file.check("--json", output)
    rank_info = RankInfo()
    rank_info.prepare(config.parallel)
    rows = measure(config, info, number - 1, runs, rank_info.device)
    if output is not None:
        new_file.write_json("--json", output, [*map(asdict, rows)])
    setting = (
        f"{config.model.name}, module {number} of {num_modules}, head"
        f" {config.head.name}, batch {config.data.batch_size}, {config.precision},"
        f" {rank_info.device.type}, {counted(torch.get_num_threads(), 'thread')}, torch"
        f" {torch.__version__}, {counted(runs, 'run')}"
    )
    return f"{setting}\n\n{markdown(rows)}"


def measure(
    config: Config, info: DataInfo, index: int, runs: int, device: torch.device
) -> list[ReconcileRow]:
    """Compare all variants on one module.

    Args:
        config: the configuration of the network. With `compile`, variants are compared with the
            exact gradient of the uncompiled module, and `exact` is not timed.
        info: facts of the data; images are drawn at random.
        index: index of the module (from 0), one that is reconciled.
        runs: interleaved repetitions.
        device: where to run.
    """
    blueprint = draw(config, info)
    inputs = _step_inputs(blueprint, index, device)
    settings = variants(config.reconcile)
    eager = replace(blueprint, config=replace(config, compile=False))
    exact = _added(eager, index, device, settings["exact"], inputs)
    if config.compile:  # compiled code has no second derivative
        settings = {name: own for name, own in settings.items() if not _is_exact(own)}
    modules = {name: _module(blueprint, index, device, own) for name, own in settings.items()}
    added = {name: _added(blueprint, index, device, own, inputs) for name, own in settings.items()}

    lengths = {name: settings[name].every for name in settings}
    work = {name: _repetition(modules[name], inputs, lengths[name]) for name in settings}
    times = interleaved(work, runs, device)
    peaks = {name: peak_bytes(_repetition(modules[name], inputs, 1), device) for name in settings}
    plain = times["plain"].median
    rows = []
    for name in settings:
        seconds = times[name].median / lengths[name]
        cosine, norm_ratio = _compare(added[name], exact)
        cost, memory = seconds / plain, peaks[name] / peaks["plain"]
        rows.append(
            ReconcileRow(name, seconds, times[name].spread, cost, memory, cosine, norm_ratio)
        )
    return rows


def _is_exact(own: ReconcileConfig) -> bool:
    return own.weight > 0 and own.estimator == "exact"


def markdown(rows: Sequence[ReconcileRow]) -> str:
    """Return the rows as a table."""
    columns = ("variant", "ms per step", "spread", "cost", "peak memory")
    return markdown_table([*columns, "cosine with exact", "norm ratio"], map(_cells, rows))


def _cells(row: ReconcileRow) -> list[str]:
    times = [row.variant, f"{1000 * row.seconds:.1f}", f"{row.spread:.0%}", f"{row.cost:.2f}x"]
    agreement = [f"{row.cosine:.3f}", f"{row.norm_ratio:.2f}"]
    return [*times, f"{row.memory:.2f}x", *(["", ""] if row.variant == "plain" else agreement)]


def _step_inputs(blueprint: Blueprint, index: int, device: torch.device) -> StepInputs:
    """Run the module's neighbours on random images, for real activations, signal and message."""
    config = blueprint.config
    size = microbatch_size(config)
    generator = torch.Generator().manual_seed(0)
    x = blueprint.example_inputs(size, generator).to(device)
    labels = blueprint.task.example_labels(size, generator).to(device)
    activations, signals, lagged = [x], [x], []
    for number in range(min(index + 2, len(blueprint.modules))):
        module = blueprint.module(number, device)
        module.lagged = LaggedMessages(LagPlan((Feedback(1),)), number)
        activations.append(module(activations[-1], labels, Step(0, 0.0)))
        signals.append(module.signal())
        lagged.append(module.learn())
    downstream = lagged[index + 1] if index + 1 < len(lagged) else ()
    return StepInputs(activations[index], labels, signals[index], downstream)


def _module(
    blueprint: Blueprint, index: int, device: torch.device, own: ReconcileConfig
) -> LocalModule:
    """Its feedback comes at once, and all of it is the same."""
    config = replace(blueprint.config, reconcile=own)
    module = replace(blueprint, config=config).module(index, device)
    contents = (Feedback(own.every),) if own.feeds_back else ()
    module.lagged = LaggedMessages(LagPlan(contents, steps=0), index)
    return module


def _acts(module: LocalModule, inputs: StepInputs, number: int, lr: float) -> Step:
    """Run everything of a step but the update."""
    own = module.rules.reconcile
    due = own.weight > 0 and number % own.every == 0
    down = due and own.direction != "upstream"
    step = Step(number, lr, reconcile=down, compare=down)
    module(inputs.x, inputs.labels, step)
    module.signal()
    if down:
        module.receive(inputs.signal)
    module.learn()
    if module.lagged.expects(step, 0):
        module.apply_lagged(step, 0, *inputs.lagged)
    return step


def _repetition(module: LocalModule, inputs: StepInputs, steps: int) -> Callable[[], None]:
    """Return a function that runs `steps` steps, of which the first one reconciles.

    Learning rates are tiny, so that all repetitions are alike.
    """

    def work() -> None:
        for number in range(steps):
            module.update(_acts(module, inputs, number, lr=1e-8))

    return work


def _added(
    blueprint: Blueprint,
    index: int,
    device: torch.device,
    own: ReconcileConfig,
    inputs: StepInputs,
) -> Tensor:
    """The gradient that one step of reconciliation adds, over its strength, as one vector."""
    vectors = []
    for weight in (own.weight, 0.0):
        module = _module(blueprint, index, device, replace(own, weight=weight))
        _acts(module, inputs, 0, lr=0.0)
        pairs = zip(module.gradients, module.trainable, strict=True)
        found = [torch.zeros_like(p) if g is None else g for g, p in pairs]
        vectors.append(torch.cat([g.double().flatten() for g in found]))
    return (vectors[0] - vectors[1]) / (own.strength or 1.0)


def _compare(added: Tensor, reference: Tensor) -> tuple[float, float]:
    norms = added.norm().item(), reference.norm().item()
    if not all(norms):
        return 0.0, 0.0
    return (added @ reference).item() / (norms[0] * norms[1]), norms[0] / norms[1]
