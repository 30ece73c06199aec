"""Step times on hardware that is not at hand: other numbers of stages, links and methods.

The cost of each part has been measured (`pipeline-local profile`); the simulator adds the waiting.
Each worker has a device of its own: contention between workers on one host is not simulated.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from pipeline_local.blueprint.blueprint import Blueprint
from pipeline_local.config import Config
from pipeline_local.console.screen import markdown_table
from pipeline_local.data.info import DataInfo
from pipeline_local.errors import UserError, counted
from pipeline_local.placement.costs import AS_MEASURED, Link
from pipeline_local.placement.draw import draw
from pipeline_local.placement.placement import costs_by_device, mesh_of
from pipeline_local.placement.profile_file import LOWER_BOUND
from pipeline_local.simulation.programs import METHODS, SimulatedRun
from pipeline_local.simulation.scenario import Scenario
from pipeline_local.simulation.simulator import Worker, simulate
from pipeline_local.simulation.work import stage_works
from pipeline_local.user_input import new_file

LEAST_STEPS, LEAST_MICROBATCHES = 4, 64
"""Least size of a simulated run's second half, which is measured: the pipeline is full then."""
MOST_STEPS = 2000
"""Steps up to which it is a whole number of all intervals at which something is sent."""
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


def drawn(config: Config, info: DataInfo, scenario: Scenario) -> Blueprint:
    """Draw the run to simulate.

    Raises:
        UserError: there is no profile, or options and configuration do not fit together.
    """
    scenario.check(config)
    blueprint = draw(config, info)
    if config.modules.profile is None:
        raise UserError(
            "modules.profile: a simulation needs measured times, got none; make them with"
            " pipeline-local profile"
        )
    return blueprint


def rows(blueprint: Blueprint, scenario: Scenario) -> list[SimulationRow]:
    """Simulate every method on every number of stages."""
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
    every = config.reconcile.every if config.reconcile.weight else 0
    distill = config.distill.every if config.distill.weight else 0
    links = tuple(map(scenario.link.over, _profiled(blueprint, count)))
    for name in scenario.methods:
        parts = own if name in ("local", "ddp") else scenario.parts(config, mesh)
        stages = stage_works(blueprint, count, config.data.batch_size / parts, cut)
        run = SimulatedRun(
            stages=stages,
            microbatches=parts,
            steps=2 * _counted(parts, (every, refresh, distill)),
            links=links,
            every=every,
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


def _counted(microbatches: int, intervals: Sequence[int]) -> int:
    """The number of measured steps: enough, and a multiple of every interval, of which 0 is none.

    Where that would be more than `MOST_STEPS`, it is a multiple of the shortest ones, as large as
    may be: the others are cut once.
    """
    period, there = 1, sorted(filter(None, intervals))
    for interval in there:
        longer = math.lcm(period, interval)
        period = longer if longer <= MOST_STEPS else period
    if any(period % interval for interval in there):
        return MOST_STEPS // period * period
    least = max(LEAST_STEPS, -(-LEAST_MICROBATCHES // microbatches))
    return -(-least // period) * period


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


def report(config: Config, info: DataInfo, scenario: Scenario, output: Path | None = None) -> str:
    """Simulate, write the rows as JSON if asked, and return a Markdown table with its settings.

    Raises:
        UserError: as for `drawn`; or the file exists already or cannot be written.
    """
    if output is not None:
        new_file.check("--json", output)
    blueprint = drawn(config, info, scenario)
    found = rows(blueprint, scenario)
    if output is not None:
        new_file.write_json("--json", output, {"rows": [*map(asdict, found)]})
    return f"{_setting(blueprint, scenario)}\n\n{markdown(found)}"


def _setting(blueprint: Blueprint, scenario: Scenario) -> str:
    """The settings that the numbers belong to."""
    config, modules = blueprint.config, len(blueprint.modules)
    link, said = "the profiled link", scenario.link
    if said != AS_MEASURED:
        speed = "profiled" if said.bandwidth is None else f"{said.bandwidth / 1e6:g} Mb/s"
        delay = "profiled" if said.latency is None else f"{1000 * said.latency:g} ms"
        link = f"links of {delay} one way and {speed}"
    facts = [
        config.model.name,
        f"batch {config.data.batch_size}",
        f"{link}, jitter {1000 * scenario.jitter:g} ms",
    ]
    links = (one.link for one in costs_by_device(blueprint) if one.link)
    if any(said.over(each).at_least for each in links):
        facts.append(LOWER_BOUND)
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
