"""Times of a run that nobody can afford to try: other stages, links and methods, simulated.

What each part costs has been measured (`pipeline-local profile`); the simulator adds who waits for
whom. Workers are on devices of their own: what they take from each other on one host is not seen.
"""

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from torch import nn

from pipeline_local import newfile
from pipeline_local.blueprint.blueprint import Blueprint
from pipeline_local.config import Config
from pipeline_local.data.datasets import DataInfo
from pipeline_local.errors import UserError
from pipeline_local.memory.fake_edges import num_bytes
from pipeline_local.placement.costs import Cost, Costs, Link
from pipeline_local.placement.draw import draw
from pipeline_local.placement.placement import Placement, costs_by_device, per_stage
from pipeline_local.record.metrics import as_json
from pipeline_local.simulation.programs import METHODS, Setting
from pipeline_local.simulation.scenario import Scenario
from pipeline_local.simulation.simulator import Worker, simulate
from pipeline_local.simulation.work import ModuleWork, StageWork, stretched

LEAST_STEPS, LEAST_MICROBATCHES = 4, 64
"""Of the part of a simulated run that counts, its second half: the pipeline is full then."""
REFERENCE = "1f1b"


@dataclass(frozen=True)
class Row:
    """One method on so many stages.

    Attributes:
        method: its name.
        stages: p.
        microbatches: m.
        step_seconds: of an optimizer step in the steady state.
        samples_per_second: of all replicas together.
        ratio: samples/s over 1F1B's at the same number of stages, if it was asked for.
        busy: part of the time in which the busiest worker computes.
        fill_seconds: until the last worker has done its first step.
    """

    method: str
    stages: int
    microbatches: int
    step_seconds: float
    samples_per_second: float
    ratio: float | None
    busy: float
    fill_seconds: float


def rows(config: Config, info: DataInfo, scenario: Scenario) -> list[Row]:
    """Simulate every method on every number of stages.

    Raises:
        UserError: there is no profile to take times from, or something does not fit together.
    """
    scenario.check(config)
    blueprint = draw(config, info)
    if config.modules.profile is None:
        raise UserError(
            "modules.profile: a simulation needs measured times, got none; make them with"
            " pipeline-local profile"
        )
    return [row for count in scenario.stages for row in _rows(blueprint, scenario, count)]


def step_seconds(
    blueprint: Blueprint, method: str, stages: int, microbatches: int | None = None
) -> float | None:
    """Of an optimizer step in the steady state, over the profiled line; None without a profile of
    these devices."""
    if blueprint.config.modules.profile is None:
        return None
    if len(costs_by_device(blueprint)) not in (1, stages):
        return None
    (row,) = _rows(blueprint, Scenario((method,), (stages,), microbatches), stages)
    return row.step_seconds


def _rows(blueprint: Blueprint, scenario: Scenario, count: int) -> Iterable[Row]:
    config, found = blueprint.config, []
    links = tuple(map(scenario.link, _profiled(blueprint, count)))
    for name in scenario.methods:
        own = config.train.microbatches
        parts = own if name in ("local", "ddp") else scenario.parts(config, count)
        stages = stage_works(blueprint, count, config.data.batch_size / parts)
        setting = Setting(
            stages=stages,
            microbatches=parts,
            steps=2 * _counted(parts, config.reconcile.every),
            links=links,
            every=config.reconcile.every if config.reconcile.weight else 0,
            feedback=blueprint.run_plan.lag is not None,
            replicas=scenario.replicas,
            jitter=scenario.jitter,
        )
        samples = config.data.batch_size * scenario.replicas
        found.append(_row(name, setting, samples, simulate(METHODS[name](setting))))
    reference = next((row.samples_per_second for row in found if row.method == REFERENCE), None)
    for row in found:
        ratio = row.samples_per_second / reference if reference else None
        yield Row(**{**asdict(row), "ratio": ratio})


def _profiled(blueprint: Blueprint, stages: int) -> list[Link]:
    """The line above each stage but the first, or one for all."""
    devices = costs_by_device(blueprint)
    above = devices[1:] if len(devices) == stages else ()
    return [one.link for one in above or devices[:1] if one.link]


def _counted(microbatches: int, every: int) -> int:
    """Steps that count: enough, and a multiple of those from one comparison to the next."""
    least = max(LEAST_STEPS, -(-LEAST_MICROBATCHES // microbatches))
    return -(-least // every) * every


def _row(name: str, setting: Setting, samples: int, workers: Sequence[Worker]) -> Row:
    half = setting.steps // 2
    begin = max(worker.steps[half - 1] for worker in workers)
    seconds = (max(worker.steps[-1] for worker in workers) - begin) / half
    return Row(
        method=name,
        stages=len(setting.stages),
        microbatches=setting.microbatches,
        step_seconds=seconds,
        samples_per_second=samples / seconds,
        ratio=None,
        busy=max(worker.busy for worker in workers) / setting.steps / seconds,
        fill_seconds=max(worker.steps[0] for worker in workers),
    )


def stage_works(blueprint: Blueprint, count: int, samples: float) -> tuple[StageWork, ...]:
    """What each of `count` stages does with a microbatch of so many samples.

    Args:
        blueprint: of a run with a profile.
        count: stages; more than there are modules get the mean of all modules.
        samples: of a microbatch; times are proportional to them.
    """
    part = samples / blueprint.config.data.batch_size
    modules = len(blueprint.modules)
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
    own = sum((costs.blocks[i] for i in blocks), Cost(0, 0, 0))
    if blocks.stop == len(costs.blocks):
        own += costs.classifier
    last = blueprint.is_last(numbers[-1])
    micro = blueprint.config.train.microbatches
    wire_format = blueprint.contract(numbers[-1]).activations
    messages, activations = (
        0.0 if last else num_bytes([replace(wire_format, dtype=dtype)]) * micro * part
        for dtype in (wire_format.dtype, blueprint.wire_format.inside)
    )
    paper = [blueprint.backbone.blocks[i].module for i in blocks]
    if last:
        paper.append(blueprint.backbone.classifier.module)
    return StageWork(
        modules=tuple(_module(blueprint, costs, k, part) for k in numbers),
        messages=messages,
        forward=own.forward * part,
        backward=own.backward * part,
        update=own.update,
        activations=activations,
        gradients=_gradients(blueprint, paper),
    )


def _module(blueprint: Blueprint, costs: Costs, index: int, part: float) -> ModuleWork:
    modules, every = blueprint.modules, blueprint.config.reconcile.every
    cost = costs.module(index, len(modules), modules[index])
    return ModuleWork(
        forward=cost.forward * part,
        signal=cost.signal * part,
        learn=(cost.learn - cost.added - cost.update) * part,
        added=cost.added * every * part,
        update=cost.update,
        gradients=_gradients(blueprint, [*blueprint.meta_body(index), blueprint.meta_head(index)]),
    )


def _gradients(blueprint: Blueprint, parts: Sequence[nn.Module]) -> float:
    """Bytes that replicas sum."""
    trained = (p for part in parts for p in part.parameters() if p.requires_grad)
    return float(sum(p.numel() for p in trained) * blueprint.dtype.itemsize)


def report(config: Config, info: DataInfo, scenario: Scenario, output: Path | None = None) -> str:
    """Simulate; write the rows as JSON if asked, and give them as a Markdown table.

    Raises:
        UserError: see `rows`; or the file exists already or cannot be written.
    """
    if output is not None:
        newfile.check("--json", output)
    found = rows(config, info, scenario)
    if output is not None:
        newfile.write("--json", output, as_json({"rows": [*map(asdict, found)]}, indent=2) + "\n")
    return f"{_setting(config, scenario)}\n\n{markdown(found)}"


def _setting(config: Config, scenario: Scenario) -> str:
    """What the numbers belong to."""
    most = config.modules.known_count or 0
    link = "the profiled line"
    if scenario.latency is not None or scenario.bandwidth is not None:
        speed = "profiled" if scenario.bandwidth is None else f"{scenario.bandwidth / 1e6:g} Mb/s"
        delay = "profiled" if scenario.latency is None else f"{1000 * scenario.latency:g} ms"
        link = f"lines of {delay} one way and {speed}"
    facts = [
        config.model.name,
        f"batch {config.data.batch_size}",
        f"{link}, jitter {1000 * scenario.jitter:g} ms",
        f"{scenario.replicas} replicas of each stage",
    ]
    if most and max(scenario.stages) > most:
        facts.append(f"beyond its {most} modules every stage is as the mean of them")
    return ", ".join(facts)


def markdown(found: Sequence[Row]) -> str:
    """As a table."""
    lines = [
        f"| method | p | m | ms per step | samples/s | over {REFERENCE} | busiest worker |"
        " first step done after, s |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for row in found:
        ratio = "" if row.ratio is None else f"{row.ratio:.2f}x"
        cells = [
            row.method,
            str(row.stages),
            str(row.microbatches),
            f"{1000 * row.step_seconds:.1f}",
            f"{row.samples_per_second:.1f}",
            ratio,
            f"{row.busy:.1%}",
            f"{row.fill_seconds:.2f}",
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)
