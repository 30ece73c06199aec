"""Accuracy against K and operations: `python experiments/accuracy.py OUTPUT.svg FOLDER SWEEP ...`.

FOLDER/VARIANT/seed-N are runs of these sweeps, all of one network and data. Left: test accuracy of
the last head against K, at the number of epochs that most variants have; right: against floating
point operations of the whole training (cost.py counts them). Bars: standard deviation over seeds.
Also prints the rows as a Markdown table.
"""

import json
import sys
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path
from statistics import mean, mode, stdev

import matplotlib as mpl
import yaml

mpl.use("svg")
import matplotlib.pyplot as plt
from cost import STEPS, flops, training

from pipeline_local import configfile
from pipeline_local.config import Config
from pipeline_local.data.datasets import describe

SYNTHETIC = ["data.name=synthetic", "data.root=null"]
"""Operations do not depend on what the images show."""


@dataclass(frozen=True)
class Point:
    """One variant without reconciliation."""

    method: str
    modules: int
    epochs: int
    operations: float
    accuracies: tuple[float, ...]

    @property
    def mean(self) -> float:
        """Over the seeds."""
        return mean(self.accuracies)

    @property
    def deviation(self) -> float:
        """Over the seeds."""
        return stdev(self.accuracies) if len(self.accuracies) > 1 else 0.0


def points(folder: Path, sweep: Path) -> list[Point]:
    """Of all variants that have run."""
    plan, found = yaml.safe_load(sweep.read_text()), []
    for name, own in plan["variants"].items():
        overrides = [*plan["common"], *own, *SYNTHETIC]
        config = configfile.load(Path(plan["config"]), overrides)
        runs = sorted(folder.glob(f"{name}/seed-*/summary.json"))
        if not runs or config.reconcile.weight:
            continue
        accuracies = [100 * json.loads(run.read_text())["accuracy"][-1] for run in runs]
        epochs, samples = config.train.epochs or 0, config.data.limit or 0
        operations = _per_sample(config) * epochs * samples
        count = config.modules.known_count or 0
        found.append(Point(_method(config), count, epochs, operations, tuple(accuracies)))
    return found


def _per_sample(config: Config) -> float:
    return flops(training(config, describe(config.data))) / STEPS / config.data.batch_size


def _method(config: Config) -> str:
    if config.modules.known_count == 1:
        return "backpropagation"
    head = config.head
    return f"AugLocal, {head.depth} blocks" if head.name == "auglocal" else head.name


def draw(output: Path, found: list[Point]) -> None:
    """Write the figure."""
    mpl.rcParams["svg.hashsalt"] = "pipeline_local"  # the same file from the same runs
    figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3.6), sharey=True)
    usual = mode(point.epochs for point in found)
    against_k, against_operations = defaultdict(list), defaultdict(list)
    for point in found:
        name = "" if point.modules == 1 else f"K={point.modules}, "
        against_operations[name + point.method].append(point)
        if point.epochs == usual:
            against_k[point.method].append(point)
    for name, row in against_k.items():
        _line(left, name, sorted(row, key=lambda p: p.modules), [p.modules for p in row])
    for name, row in against_operations.items():
        row.sort(key=lambda p: p.operations)
        _line(right, name, row, [p.operations / 1e12 for p in row])
    left.set_xlabel(f"modules K ({usual} epochs)")
    left.set_ylabel("test accuracy, last head, %")
    right.set_xlabel("training, TFLOP")
    for axes in (left, right):
        axes.legend(fontsize=6)
    figure.tight_layout()
    figure.savefig(output, metadata={"Date": None})


def _line(axes: plt.Axes, name: str, row: list[Point], x: list[float]) -> None:
    y, bars = [p.mean for p in row], [p.deviation for p in row]
    axes.errorbar(sorted(x), y, bars, marker="o", markersize=3, capsize=2, lw=1, label=name)


def main() -> None:
    """Draw, and print the table."""
    output, folder, *sweeps = map(Path, sys.argv[1:])
    found = [point for sweep in sweeps for point in points(folder, sweep)]
    draw(output, found)
    print("| method | K | epochs | TFLOP | seeds | accuracy |\n|---|---|---|---|---|---|")
    for p in sorted(found, key=lambda p: p.operations):
        accuracy = f"{p.mean:.2f} ± {p.deviation:.2f}"
        cells = [p.method, p.modules, p.epochs, f"{p.operations / 1e12:.1f}"]
        print(f"| {' | '.join(map(str, [*cells, len(p.accuracies), accuracy]))} |")


if __name__ == "__main__":
    main()
