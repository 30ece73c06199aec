"""Step times on hardware that is not at hand: other numbers of stages, links and methods.

The cost of each part has been measured (`pipeline-local profile`); the simulator adds the waiting.
Each worker has a device of its own: contention between workers on one host is not simulated.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from torch import nn

from pipeline_local.blueprint.blueprint import Blueprint
from pipeline_local.blueprint.contract import Spec
from pipeline_local.config import Config
from pipeline_local.console.screen import markdown_table
from pipeline_local.data.info import DataInfo
from pipeline_local.errors import UserError, counted
from pipeline_local.memory.fake_edges import num_bytes
from pipeline_local.placement.costs import Cost, Costs, Link
from pipeline_local.placement.draw import draw
from pipeline_local.placement.placement import Placement, costs_by_device, mesh_of, per_stage
from pipeline_local.record.metrics import as_json
from pipeline_local.simulation.programs import METHODS, SimulatedRun
from pipeline_local.simulation.scenario import Scenario
from pipeline_local.simulation.simulator import Worker, simulate
from pipeline_local.simulation.work import ModuleWork, StageWork, stretched
from pipeline_local.user_input import new_file

LEAST_STEPS, LEAST_MICROBATCHES = 4, 64
"""Least size of a simulated run's second half, which is measured: the pipeline is full then."""
REFERENCE = "1f1b"


@dataclass(frozen=True)
class SimulationRow:
    """The simulated times of one method on a number of stages.

    Attributes:
        method: name of the method.
        stages: p, the number of stages.
        microbatches: m, the number of microbatches.
        step_seconds: seconds of an optimizer step in the steady state.
        samples_per_second: throughput of all ranks together.
        ratio: throughput over that of 1F1B on as many stages; None where 1F1B is not simulated.
        busy: fraction of the time in which the busiest worker computes.
        fill_seconds: seconds until the last worker has finished its first step.
    """

    method: str
    stages: int
    microbatches: int
    step_seconds: float
    samples_per_second: float
    ratio: float | None
    busy: float
    fill_seconds: float


def rows(config: Config, info: DataInfo, scenario: Scenario) -> list[SimulationRow]:
    """Simulate every method on every number of stages.

    Raises:
        UserError: there is no profile, or options and configuration do not fit together.
    """
    return _all_rows(_drawn(config, info, scenario), scenario)


def _drawn(config: Config, info: DataInfo, scenario: Scenario) -> Blueprint:
    scenario.check(config)
    blueprint = draw(config, info)
    if config.modules.profile is None:
        raise UserError(
            "modules.profile: a simulation needs measured times, got none; make them with"
            " pipeline-local profile"
        )
    return blueprint


def _all_rows(blueprint: Blueprint, scenario: Scenario) -> list[SimulationRow]:
    own = blueprint.config.train.microbatches
    return [row for count in scenario.stages for row in _rows(blueprint, scenario, count, own)]


def step_seconds(
    blueprint: Blueprint,
    method: str,
    stages: int,
    microbatches: int | None = None,
    cut: Sequence[range] | None = None,
) -> float | None:
    """Return the seconds of a step in the steady state, over the profiled link.

    Args:
        blueprint: the run's specification.
        method: a name from `METHODS`.
        stages: number of stages.
        microbatches: number of microbatches; None: one per stage of a pipeline, else as configured.
        cut: the blocks of each stage of a pipeline with a global backward pass; None: as those of
            local learning.

    Returns:
        None without a profile, or where it has not one entry for each stage.
    """
    if blueprint.config.modules.profile is None:
        return None
    if len(costs_by_device(blueprint)) not in (1, stages):
        return None
    scenario = Scenario((method,), (stages,), microbatches)
    own = microbatches or blueprint.config.train.microbatches
    (row,) = _rows(blueprint, scenario, stages, own, cut)
    return row.step_seconds


def _rows(
    blueprint: Blueprint,
    scenario: Scenario,
    count: int,
    own: int,
    cut: Sequence[range] | None = None,
) -> Iterable[SimulationRow]:
    config, found, mesh = blueprint.config, [], mesh_of(blueprint.config, count)
    refresh = next((each.every for each in blueprint.run_plan.lag.contents if each.once), 0)
    distill = config.distill.every if config.distill.weight else 0
    links = tuple(map(scenario.link, _profiled(blueprint, count)))
    for name in scenario.methods:
        parts = own if name in ("local", "ddp") else scenario.parts(config, mesh)
        stages = stage_works(blueprint, count, config.data.batch_size / parts, cut)
        run = SimulatedRun(
            stages=stages,
            microbatches=parts,
            steps=2 * _counted(parts, math.lcm(config.reconcile.every, refresh or 1, distill or 1)),
            links=links,
            every=config.reconcile.every if config.reconcile.weight else 0,
            feedback=config.reconcile.feeds_back,
            refresh=refresh,
            distill=distill,
            replicas=mesh.replicas,
            jitter=scenario.jitter,
            value_bytes=blueprint.wire_format.inside.itemsize,
        )
        found.append(_row(name, run, config.data.batch_size, simulate(METHODS[name](run))))
    reference = next((row.samples_per_second for row in found if row.method == REFERENCE), None)
    for row in found:
        ratio = row.samples_per_second / reference if reference else None
        yield replace(row, ratio=ratio)


def _profiled(blueprint: Blueprint, stages: int) -> list[Link]:
    """The upstream link of each stage but the first, or one for all."""
    devices = costs_by_device(blueprint)
    receivers = devices[1:] if len(devices) == stages else ()
    return [one.link for one in receivers or devices[:1] if one.link]


def _counted(microbatches: int, every: int) -> int:
    """The number of measured steps: enough, and a multiple of the interval of comparisons."""
    least = max(LEAST_STEPS, -(-LEAST_MICROBATCHES // microbatches))
    return -(-least // every) * every


def _row(name: str, run: SimulatedRun, samples: int, workers: Sequence[Worker]) -> SimulationRow:
    half = run.steps // 2
    begin = max(worker.steps[half - 1] for worker in workers)
    seconds = (max(worker.steps[-1] for worker in workers) - begin) / half
    return SimulationRow(
        method=name,
        stages=len(run.stages),
        microbatches=run.microbatches,
        step_seconds=seconds,
        samples_per_second=samples / seconds,
        ratio=None,
        busy=max(worker.busy for worker in workers) / run.steps / seconds,
        fill_seconds=max(worker.steps[0] for worker in workers),
    )


def stage_works(
    blueprint: Blueprint, count: int, samples: float, cut: Sequence[range] | None = None
) -> tuple[StageWork, ...]:
    """Return the work of each stage for one microbatch.

    Args:
        blueprint: the specification of a run with a profile.
        count: number of stages. With more stages than modules, each gets the mean module.
        samples: samples in a microbatch; times are proportional to them.
        cut: the blocks of each stage, for backpropagation alone; None: those of its modules.
    """
    part = samples / blueprint.config.data.batch_size
    modules = len(blueprint.modules)
    if cut is not None:
        devices = per_stage(costs_by_device(blueprint), len(cut))
        return tuple(
            _backpropagated(blueprint, costs, blocks, part)
            for costs, blocks in zip(devices, cut, strict=True)
        )
    if count <= modules:
        placement = Placement.of(blueprint, count)
        placed = zip(placement.costs, placement.stages, strict=True)
        return tuple(_stage(blueprint, costs, numbers, part) for costs, numbers in placed)
    single = [
        _stage(blueprint, costs, range(k, k + 1), part)
        for k, costs in enumerate(per_stage(costs_by_device(blueprint), modules))
    ]
    return stretched(single, count)


def _stage(blueprint: Blueprint, costs: Costs, numbers: range, part: float) -> StageWork:
    modules = blueprint.modules
    blocks = range(modules[numbers[0]].start, modules[numbers[-1]].stop)
    plain = _backpropagated(blueprint, costs, blocks, part)
    last, micro = blueprint.is_last(numbers[-1]), blueprint.config.train.microbatches
    message = num_bytes([blueprint.contract(numbers[-1]).activations])
    published = blueprint.contract(numbers[0] - 1).lagged if numbers[0] else {}
    return replace(
        plain,
        modules=tuple(_module(blueprint, costs, k, part) for k in numbers),
        messages=0.0 if last else message * micro * part,
        copies=float(sum(num_bytes(specs) for each, specs in published.items() if each.once)),
        outputs=_outputs(blueprint, numbers[0]) * micro * part,
    )


def _outputs(blueprint: Blueprint, sender: int) -> int:
    """Bytes of the outputs that a module sends upstream with a microbatch for distillation."""
    distils = sender > 0 and blueprint.config.distill.weight > 0
    if not distils:
        return 0
    return num_bytes([blueprint.wire_format.lagged(blueprint.module_specs(sender).part)])


def _backpropagated(blueprint: Blueprint, costs: Costs, blocks: range, part: float) -> StageWork:
    """The work of consecutive blocks under backpropagation, the classifier behind the last one."""
    own = sum((costs.blocks[i] for i in blocks), Cost(0, 0, 0))
    meta = [blueprint.backbone.blocks[i].module for i in blocks]
    last = blocks.stop == len(costs.blocks)
    if last:
        own += costs.classifier
        meta.append(blueprint.backbone.classifier.module)
    shape = blueprint.config.data.batch_size, *blueprint.output_shapes[blocks[-1]]
    activations = num_bytes([Spec(shape, blueprint.wire_format.inside)]) * part
    return StageWork(
        modules=(),
        messages=0.0,
        forward=own.forward * part,
        backward=own.backward * part,
        update=own.update,
        activations=0.0 if last else activations,
        gradients=_gradients(blueprint, meta),
    )


def _module(blueprint: Blueprint, costs: Costs, index: int, part: float) -> ModuleWork:
    modules, every = blueprint.modules, blueprint.config.reconcile.every
    cost = costs.module(index, len(modules), modules[index])
    return ModuleWork(
        forward=cost.forward * part,
        signal=cost.signal * part,
        learn=(cost.learn - cost.added - cost.distilled - cost.update) * part,
        added=cost.added * every * part,
        distilled=cost.distilled * blueprint.config.distill.every * part,
        update=cost.update,
        gradients=_gradients(blueprint, [*blueprint.meta_body(index), blueprint.meta_head(index)]),
    )


def _gradients(blueprint: Blueprint, parts: Sequence[nn.Module]) -> float:
    """Bytes of the gradients that replicas all-reduce."""
    trained = (p for part in parts for p in part.parameters() if p.requires_grad)
    return float(sum(p.numel() for p in trained) * blueprint.dtype.itemsize)


def report(config: Config, info: DataInfo, scenario: Scenario, output: Path | None = None) -> str:
    """Simulate, write the rows as JSON if asked, and return a Markdown table with its settings.

    Raises:
        UserError: as for `rows`; or the file exists already or cannot be written.
    """
    if output is not None:
        new_file.check("--json", output)
    blueprint = _drawn(config, info, scenario)
    found = _all_rows(blueprint, scenario)
    if output is not None:
        new_file.write("--json", output, as_json({"rows": [*map(asdict, found)]}, indent=2) + "\n")
    return f"{_setting(blueprint, scenario)}\n\n{markdown(found)}"


def _setting(blueprint: Blueprint, scenario: Scenario) -> str:
    """The settings that the numbers belong to."""
    config, modules = blueprint.config, len(blueprint.modules)
    link = "the profiled link"
    if scenario.latency is not None or scenario.bandwidth is not None:
        speed = "profiled" if scenario.bandwidth is None else f"{scenario.bandwidth / 1e6:g} Mb/s"
        delay = "profiled" if scenario.latency is None else f"{1000 * scenario.latency:g} ms"
        link = f"links of {delay} one way and {speed}"
    facts = [
        config.model.name,
        f"batch {config.data.batch_size}",
        f"{link}, jitter {1000 * scenario.jitter:g} ms",
    ]
    if (several := config.parallel.replicas) != 1:
        shown = [*several] if isinstance(several, tuple) else several
        facts.append(f"parallel.replicas={shown}")
    if max(scenario.stages) > modules:
        facts.append(
            f"with more stages than its {counted(modules, 'module')}, every stage has the mean"
            f" module"
        )
    return ", ".join(facts)


def markdown(found: Sequence[SimulationRow]) -> str:
    """Return the rows as a table."""
    columns = ["method", "p", "m", "ms per step", "samples/s", f"over {REFERENCE}"]
    columns += ["busiest worker", "first step done after, s"]
    return markdown_table(columns, map(_cells, found))


def _cells(row: SimulationRow) -> list[str]:
    return [
        row.method,
        str(row.stages),
        str(row.microbatches),
        f"{1000 * row.step_seconds:.1f}",
        f"{row.samples_per_second:.1f}",
        "" if row.ratio is None else f"{row.ratio:.2f}x",
        f"{row.busy:.1%}",
        f"{row.fill_seconds:.2f}",
    ]
