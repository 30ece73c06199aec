"""Accuracy against K, operations, time: `python experiments/accuracy.py OUTPUT FOLDER SWEEP ...`.

FOLDER/VARIANT/seed-N are runs of these sweeps, all of one network and data; of those with the same
K, head and epochs, the best counts. Left: test accuracy of the last head against K, at the epochs
that most variants have; middle: against floating point operations of the whole training (cost.py
counts them); right: against its time, steps times what `bench baselines --json` measured for
one (`--times`: from the first file methods with a global backward pass, from each other one local
learning at its K and head). Bars: standard deviation over seeds. Also prints the rows as a Markdown
table.
"""

import argparse
import json
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean, mode, stdev

import matplotlib as mpl
import torch
import yaml

mpl.use("svg")
import matplotlib.pyplot as plt
from cost import STEPS, flops, training

from pipeline_local.config import Config
from pipeline_local.configfile import configfile
from pipeline_local.data.datasets import describe
from pipeline_local.learning import heads

BACKPROPAGATION = "backpropagation"
SYNTHETIC = ["data.name=synthetic", "data.root=null"]
"""Operations do not depend on what the images show."""


@dataclass(frozen=True)
class Point:
    """One variant without reconciliation."""

    method: str
    modules: int
    epochs: int
    steps: int
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
        steps = epochs * (samples // config.data.batch_size)
        count = config.modules.known_count or 0
        found.append(Point(_method(config), count, epochs, steps, operations, tuple(accuracies)))
    return found


def best(found: Iterable[Point]) -> list[Point]:
    """Of variants that differ in something else, such as the learning rate, the best one."""
    chosen: dict[tuple[str, int, int], Point] = {}
    for point in found:
        alike = point.method, point.modules, point.epochs
        if alike not in chosen or chosen[alike].mean < point.mean:
            chosen[alike] = point
    return list(chosen.values())


def _per_sample(config: Config) -> float:
    return flops(training(config, describe(config.data))) / STEPS / config.data.batch_size


def _method(config: Config) -> str:
    return BACKPROPAGATION if config.modules.known_count == 1 else heads.title(config.head)


def seconds_per_step(files: Sequence[Path]) -> Iterator[tuple[str, tuple[str, int], float]]:
    """What `bench baselines --json` measured: (name of a line, method and K it is of, seconds)."""
    for number, file in enumerate(files):
        measured = json.loads(file.read_text())
        for row in (row for row in measured["rows"] if row["step_seconds"] is not None):
            if number > 0 and row["peer"] == "local":
                name = f"K={measured['modules']}, {measured['head']}"
                yield name, (measured["head"], measured["modules"]), row["step_seconds"]
            elif number == 0 and not row["peer"].startswith("local"):
                name = f"{BACKPROPAGATION}, {row['peer']}, p={row['ranks']}"
                yield name, (BACKPROPAGATION, 1), row["step_seconds"]


def draw(output: Path, found: list[Point], times: Sequence[Path]) -> None:
    """Write the figure."""
    mpl.rcParams["svg.hashsalt"] = "pipeline_local"  # the same file from the same runs
    panels = 3 if times else 2
    figure, (left, middle, *right) = plt.subplots(
        1, panels, figsize=(4.5 * panels, 3.6), sharey=True
    )
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
        _line(middle, name, row, [p.operations / 1e12 for p in row])
    left.set_xlabel(f"modules K ({usual} epochs)")
    left.set_ylabel("test accuracy, last head, %")
    middle.set_xlabel("training, TFLOP")
    for axes in right:
        for name, of, seconds in seconds_per_step(times):
            row = sorted((p for p in found if (p.method, p.modules) == of), key=lambda p: p.steps)
            _line(axes, name, row, [p.steps * seconds for p in row])
        axes.set_xlabel("training, seconds (steps x measured time of a step)")
    for axes in (left, middle, *right):
        axes.legend(fontsize=6)
    figure.tight_layout()
    figure.savefig(output, metadata={"Date": None})


def _line(axes: plt.Axes, name: str, row: list[Point], x: list[float]) -> None:
    y, bars = [p.mean for p in row], [p.deviation for p in row]
    axes.errorbar(sorted(x), y, bars, marker="o", markersize=3, capsize=2, lw=1, label=name)


def main() -> None:
    """Draw, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("output", type=Path, help="an SVG file")
    parser.add_argument("folder", type=Path)
    parser.add_argument("sweeps", type=Path, nargs="+")
    parser.add_argument("--times", type=Path, nargs="+", default=(), metavar="FILE.json")
    options = parser.parse_args()
    torch.set_num_threads(1)  # nothing is timed, and sweeps may be running on the other cores
    found = best(point for sweep in options.sweeps for point in points(options.folder, sweep))
    draw(options.output, found, options.times)
    print("| method | K | epochs | TFLOP | seeds | accuracy |\n|---|---|---|---|---|---|")
    for p in sorted(found, key=lambda p: p.operations):
        accuracy = f"{p.mean:.2f} ± {p.deviation:.2f}"
        cells = [p.method, p.modules, p.epochs, f"{p.operations / 1e12:.1f}"]
        print(f"| {' | '.join(map(str, [*cells, len(p.accuracies), accuracy]))} |")


if __name__ == "__main__":
    main()
