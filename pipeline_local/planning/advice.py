"""Which method to use for a network on so many devices: a profile, a plan and a simulation at once.

The advice prefers exact gradients: local learning is advised only where it is clearly faster than
every exact method that fits, or where none fits.
"""

import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from pipeline_local.config import Config
from pipeline_local.console.screen import markdown_table
from pipeline_local.data.info import DataInfo
from pipeline_local.errors import ConfigError, UserError, counted
from pipeline_local.placement import profile_file
from pipeline_local.placement.costs import AS_MEASURED, Link, LinkOptions
from pipeline_local.planning import plan, profile
from pipeline_local.planning.alternatives import Alternative
from pipeline_local.planning.plan import Plan
from pipeline_local.planning.verdict import best_of_each, mebibytes
from pipeline_local.ranks.rank import RankInfo

RUNS = 3
"""Repetitions of each part that is measured."""

WORTH = 1.1
"""Local gradients are not exact: a method that is this many times slower is still preferred."""

HOW = {
    "BP": "train on one device, without a pipeline",
    "BP checkpointed": "train on one device with torch.utils.checkpoint",
    "DDP": "use torch's DistributedDataParallel",
    "1F1B": "use torch.distributed.pipelining with Schedule1F1B",
}
"""What the advice of an exact method means."""


@dataclass(frozen=True)
class Situation:
    """What the advice is for.

    Attributes:
        devices: number of devices.
        link: latency and bandwidth from one to the next, where not as between two threads of this
            host.
    """

    devices: int
    link: LinkOptions = AS_MEASURED

    def check(self) -> None:
        """Check the options.

        Raises:
            ConfigError: it lists every problem, one per line.
        """
        few = [f"--devices: at least 1, got {self.devices}"] if self.devices < 1 else []
        if problems := [*few, *self.link.problems()]:
            raise ConfigError(problems)


def draw(config: Config, info: DataInfo, situation: Situation, rank_info: RankInfo) -> Plan:
    """Measure the network's parts on this device, and plan a run on as many devices as are said.

    Raises:
        UserError: the options are wrong, or the configuration does not fit together.
    """
    situation.check()
    if config.modules.profile is not None:
        raise UserError(
            "modules.profile: advise measures the network itself, got one; leave it out, or use"
            " plan and simulate"
        )
    rank_info.prepare(config.parallel)
    facts = profile.measure(config, info, RUNS, rank_info)
    facts["link"] = profile_file.row(situation.link.over(Link(**facts["link"])))
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "profile.json"
        profile_file.save(facts, path)
        config = replace(config, modules=replace(config.modules, profile=path))
        return plan.draw(config, info, situation.devices)


def report(drawn: Plan) -> Iterator[str]:
    """Yield a Markdown table of all methods, each with its best microbatches, and the advice.

    Where the costs are from is said below.
    """
    rows = best_of_each(drawn.alternatives)
    columns = ["method", "m", "MiB per device", "fits", "ms per step", "over local"]
    own = rows[0].speed
    yield markdown_table(columns, (_cells(row, own) for row in rows))
    yield ""
    yield from advice(rows, len(drawn.stages))
    yield f"Costs are {drawn.origin}."


def _cells(row: Alternative, own: float) -> list[str]:
    fits = {None: "not known (parallel.memory=GIB)", True: "yes", False: "no"}[row.fits]
    milliseconds = "" if row.seconds is None else f"{1000 * row.seconds:.1f}"
    memory, speed = mebibytes(row.peak), f"{row.speed / own:.2f}x"
    return [row.method, str(row.microbatches), memory, fits, milliseconds, speed]


def advice(rows: Sequence[Alternative], devices: int) -> Iterator[str]:
    """Yield the advice in words.

    Args:
        rows: local learning first, and every other method once.
        devices: the number of devices.
    """
    local, *others = rows
    exact = [row for row in others if row.fits is not False]
    best = max(exact, key=lambda row: row.speed, default=None)
    if best is not None and (best.speed * WORTH >= local.speed or local.fits is False):
        yield f"Advice: {best.method}; {HOW[best.method]}. {_compared(best, local)}"
    elif local.fits is False:
        yield (
            f"Advice: none of these fits on {counted(devices, 'device')}; use more of them, a"
            f" smaller data.batch_size, modules.recompute=true, or FSDP."
        )
    else:
        settings = f"parallel.stages={devices} train.microbatches={local.microbatches}"
        yield f"Advice: local learning; use pipeline-local train with {settings}."
        yield _gain(local, best)
        yield (
            "Its gradients are not exact: expect some accuracy less, which head.name, head.depth"
            " and fewer modules win back at a price (docs/choosing.md)."
        )
    if devices > 1 and not any(row.method == "DDP" for row in exact):
        yield (
            "Where the links are fast, try FSDP first: it is exact, divides weights and optimizer"
            " over the devices, and is not among the methods that are simulated here."
        )


def _compared(best: Alternative, local: Alternative) -> str:
    if local.fits is False:
        return "Its gradients are exact, and local learning does not fit."
    ratio = best.speed / local.speed
    how = f"{ratio:.2f} times as fast as" if ratio >= 1 else f"{1 / ratio:.2f} times slower than"
    return f"Its gradients are exact, and it is {how} local learning."


def _gain(local: Alternative, best: Alternative | None) -> str:
    if best is None:
        return "No exact method of these fits."
    return (
        f"It is {local.speed / best.speed:.2f} times as fast as {best.method}, the fastest exact"
        f" method that fits, with {mebibytes(local.peak)} MiB per device to {mebibytes(best.peak)}."
    )
