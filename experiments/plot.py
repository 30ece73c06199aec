"""Discord and cosine per boundary over time: `python experiments/plot.py OUTPUT.svg RUN [RUN ...]`.

A column per run, from its metrics/: above, the discord at each boundary; below, cosine (g, s).
"""

import json
import sys
from collections import defaultdict
from pathlib import Path

import matplotlib as mpl

mpl.use("svg")
import matplotlib.pyplot as plt

QUANTITIES = {"discord": "discord |g - s|²", "cosine": "cosine (g, s)"}
Curves = dict[tuple[str, int], list[tuple[int, float]]]


def curves(run: Path) -> Curves:
    """(quantity, module) -> (step, value) pairs."""
    found: Curves = defaultdict(list)
    for path in sorted(run.glob("metrics/*.jsonl")):
        for line in map(json.loads, path.read_text().splitlines()):
            if line["event"] == "train":
                for number, row in line["modules"].items():
                    for quantity in QUANTITIES.keys() & row.keys():
                        found[quantity, int(number)].append((line["step"], row[quantity]))
    return found


def draw(output: Path, runs: list[Path]) -> None:
    """Write the figure."""
    mpl.rcParams["svg.hashsalt"] = "pipeline_local"  # the same file from the same runs
    size = (3.2 * len(runs), 5)
    figure, rows = plt.subplots(
        2, len(runs), figsize=size, sharex=True, sharey="row", squeeze=False
    )
    for column, run in enumerate(runs):
        found = curves(run)
        last = max(module for _, module in found)
        for (quantity, module), points in sorted(found.items()):
            axes = rows[list(QUANTITIES).index(quantity)][column]
            colour = plt.get_cmap("viridis")((module - 2) / max(1, last - 2))
            axes.plot(*zip(*points, strict=True), color=colour, label=f"{module - 1} | {module}")
        rows[0][column].set_title(f"{run.parent.name}", fontsize=9)
        rows[0][column].set_yscale("log")
        rows[1][column].set_xlabel("step")
    for axes, label in zip(rows[:, 0], QUANTITIES.values(), strict=True):
        axes.set_ylabel(label)
    rows[0][-1].legend(title="boundary", fontsize=6, title_fontsize=7)
    figure.tight_layout()
    figure.savefig(output, metadata={"Date": None})


if __name__ == "__main__":
    draw(Path(sys.argv[1]), [Path(name) for name in sys.argv[2:]])
