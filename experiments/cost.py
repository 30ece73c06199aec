"""What every variant of a sweep costs: `python experiments/cost.py SWEEP.yaml [key=value ...]`.

Per variant: floating point operations of training per sample (of matrix products and convolutions),
time of a step, and peak memory of a step; the last two as ratios to the first variant, on random
images, all modules in one process, steps of all variants in turns, medians.
"""

import argparse
from collections.abc import Callable
from dataclasses import replace
from itertools import count, islice
from pathlib import Path
from typing import Any

import torch
import yaml
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from pipeline_local.bench.memory import peak_bytes
from pipeline_local.bench.timing import interleaved
from pipeline_local.blueprint.blueprint import Blueprint
from pipeline_local.config import Config
from pipeline_local.configfile import configfile
from pipeline_local.data.datasets import describe
from pipeline_local.data.info import DataInfo
from pipeline_local.pipeline.edge import Nowhere
from pipeline_local.pipeline.stage import Stage
from pipeline_local.placement.draw import draw as draw_blueprint
from pipeline_local.record.trace import Trace

STEPS = 8
"""Of one repetition: a multiple of every `reconcile.every` in use."""
DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")


class Fixed:
    """One random batch, again and again."""

    def __init__(self, blueprint: Blueprint) -> None:
        generator = torch.Generator().manual_seed(0)
        size = blueprint.config.data.batch_size
        self._images = blueprint.example_inputs(size, generator).to(DEVICE)
        self._labels = blueprint.task.example_labels(size, generator).to(DEVICE)
        self.compares = False
        self._signal_is_next = False

    def recv(self) -> tuple[Tensor, ...]:
        """Inputs and labels; on steps that compare, an empty signal follows."""
        if self._signal_is_next:
            self._signal_is_next = False
            return ()
        self._signal_is_next = self.compares
        return self._images, self._labels

    def send_lagged(self, *tensors: Tensor) -> None:
        """Nothing goes back to data."""


def training(config: Config, info: DataInfo) -> Callable[[], None]:
    """A repetition: `STEPS` steps of all modules, at rates too small to change anything."""
    blueprint = draw_blueprint(config, info)
    modules = [blueprint.module(k, DEVICE) for k in range(len(blueprint.modules))]
    data = Fixed(blueprint)
    stage = Stage(modules, data, Nowhere(), Trace())
    numbers = count()

    def work() -> None:
        for number in islice(numbers, STEPS):
            scheduled = blueprint.run_plan.step(number)
            data.compares = scheduled.reconcile
            stage.train(replace(scheduled, lr=1e-9, log=False, compare=scheduled.reconcile))

    return work


class Flops(TorchDispatchMode):
    """Counts operations. torch's own counter tracks modules, which `autograd.grad` forbids."""

    def __init__(self) -> None:
        super().__init__()
        self.total = 0

    def __torch_dispatch__(
        self,
        func: Any,  # noqa: ANN401
        types: Any,  # noqa: ANN401
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:  # noqa: ANN401
        """Run the operation and count it by torch's formulas."""
        result = func(*args, **(kwargs or {}))
        formula = flop_registry.get(func._overloadpacket)
        if formula is not None:
            self.total += formula(*args, **(kwargs or {}), out_val=result)
        return result


def flops(work: Callable[[], None]) -> int:
    """Floating point operations of one repetition."""
    with Flops() as counter:
        work()
    return counter.total


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("sweep", type=Path)
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="such as data.root=PATH")
    parser.add_argument("--runs", type=int, default=5, help="interleaved repetitions")
    options = parser.parse_args()
    plan = yaml.safe_load(options.sweep.read_text())
    configs = {
        name: configfile.load(Path(plan["config"]), [*plan["common"], *own, *options.overrides])
        for name, own in plan["variants"].items()
    }
    first = next(iter(configs.values()))
    torch.set_num_threads(first.parallel.threads or torch.get_num_threads())
    work = {name: training(config, describe(config.data)) for name, config in configs.items()}
    times = interleaved(work, options.runs, DEVICE)
    peaks = {name: peak_bytes(repetition, DEVICE) for name, repetition in work.items()}
    samples = STEPS * first.data.batch_size
    base = next(iter(configs))
    print("| variant | MFLOP per sample | time | spread | peak memory |\n|---|---|---|---|---|")
    for name, repetition in work.items():
        print(
            f"| {name} | {flops(repetition) / samples / 1e6:.1f} |"
            f" {times[name].median / times[base].median:.2f}x | {times[name].spread:.0%} |"
            f" {peaks[name] / peaks[base]:.2f}x |",
            flush=True,
        )


if __name__ == "__main__":
    main()
