"""The runs of a sweep as a Markdown table: `python experiments/table.py OUTPUT [--baseline NAME]`.

Per variant: test accuracy of the last head in percent, mean and sample standard deviation over the
seeds; the difference to a baseline, paired by seed; accuracy of all heads together; the mean over
all boundaries of cosine (g, s) in the last tenth of training; training seconds.
"""

import argparse
import json
from pathlib import Path
from statistics import mean, stdev
from typing import Any


def results(output: Path) -> dict[str, dict[int, dict[str, Any]]]:
    """variant -> seed -> summary.json, with the closing cosine added."""
    found: dict[str, dict[int, dict[str, Any]]] = {}
    for path in sorted(output.glob("**/seed-*/summary.json")):
        name = str(path.parent.parent.relative_to(output))
        summary = json.loads(path.read_text())
        summary["cosine"] = closing_cosine(path.parent)
        found.setdefault(name, {})[int(path.parent.name.removeprefix("seed-"))] = summary
    return found


def closing_cosine(folder: Path) -> float | None:
    """Mean cosine of all boundaries over the last tenth of the logged steps; None without any."""
    lines = [
        json.loads(line)
        for path in folder.glob("metrics/*.jsonl")
        for line in path.read_text().splitlines()
    ]
    train = [line for line in lines if line["event"] == "train"]
    last = max(line["step"] for line in train)
    rows = [m for line in train if line["step"] > 0.9 * last for m in line["modules"].values()]
    cosines = [row["cosine"] for row in rows if "cosine" in row]
    return mean(cosines) if cosines else None


def spread(values: list[float]) -> str:
    """`mean ± deviation`."""
    return f"{mean(values):.2f}" + (f" ± {stdev(values):.2f}" if len(values) > 1 else "")


def table(found: dict[str, dict[int, dict[str, Any]]], baseline: str | None) -> str:
    """One row per variant, in the order of their names."""
    lines = [
        "| variant | seeds | last head % | to the baseline | all heads % | cosine | seconds |",
        "|---|---|---|---|---|---|---|",
    ]
    base = found.get(baseline or "", {})
    for name, seeds in found.items():
        accuracy = {seed: 100 * row["accuracy"][-1] for seed, row in seeds.items()}
        pairs = [accuracy[s] - 100 * base[s]["accuracy"][-1] for s in accuracy if s in base]
        told = [
            row for row in seeds.values() if "ensemble_accuracy" in row
        ]  # not before 2026-11-26
        together = [100 * row["ensemble_accuracy"][-1] for row in told]
        cosines = [row["cosine"] for row in seeds.values() if row["cosine"] is not None]
        lines.append(
            f"| {name} | {len(seeds)} | {spread(list(accuracy.values()))} |"
            f" {spread(pairs) if pairs else ''} | {spread(together) if together else ''} |"
            f" {f'{mean(cosines):.2f}' if cosines else ''} |"
            f" {mean(row['seconds'] for row in seeds.values()):.0f} |"
        )
    return "\n".join(lines)


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("output", type=Path)
    parser.add_argument("--baseline", help="variant that the others are compared with")
    options = parser.parse_args()
    print(table(results(options.output), options.baseline))


if __name__ == "__main__":
    main()
