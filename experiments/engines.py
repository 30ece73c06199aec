"""Memory and speed of the engines: `python experiments/engines.py CONFIG OUTPUT [key=value ...]`.

Trains a configuration with two replicas of one stage for some steps with each engine, in an order
that alternates, and prints a Markdown table. Memory is the largest of the replicas in training, not
in saving: on a GPU what tensors take, on a CPU the whole process. Samples/s are the
median between logged steps. Of several rounds (`--rounds`), the table has the median speed.
"""

import argparse
import json
import subprocess
import sys
from pathlib import Path
from statistics import median

MESH = ["parallel.stages=1", "parallel.replicas=2", "train.microbatches=2", "parallel.threads=1"]
LENGTH = ["train.epochs=null", "train.steps=40", "train.log_every=10", "train.evaluate_every=1000"]
ZERO = "deepspeed.zero_optimization"
VARIANTS = {
    "torch": [],
    "torch, zero 1": ["parallel.zero=1"],
    "deepspeed, ZeRO 1": ["engine=deepspeed"],
    "deepspeed, ZeRO 2": ["engine=deepspeed", f"{ZERO}.stage=2"],
    "deepspeed, ZeRO 2, offload": [
        "engine=deepspeed",
        f"{ZERO}.stage=2",
        f"{ZERO}.offload_optimizer.device=cpu",
    ],
}


def run(config: str, folder: Path, overrides: list[str]) -> tuple[float, float]:
    """MiB of the largest rank, and samples/s after the first logged step."""
    command = [sys.executable, "-m", "pipeline_local", "train", config, f"run.dir={folder}"]
    subprocess.run([*command, *MESH, *LENGTH, "run.quiet=true", *overrides], check=True)
    rows = [
        json.loads(line)
        for path in (folder / "metrics").glob("*.jsonl")
        for line in path.read_text().splitlines()
    ]
    steps = [row for row in rows if row["event"] == "train"]
    first = min(row["step"] for row in steps)
    pace = median(row["samples_per_second"] for row in steps if row["step"] > first)
    return max(row["memory_bytes"] for row in steps) / 2**20, pace


def main() -> None:
    """Run all variants and print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("config")
    parser.add_argument("output", type=Path)
    parser.add_argument("overrides", nargs="*")
    parser.add_argument("--rounds", type=int, default=1)
    options = parser.parse_args()
    found: dict[str, list[tuple[float, float]]] = {name: [] for name in VARIANTS}
    for number in range(options.rounds):
        order = list(VARIANTS) if number % 2 == 0 else list(reversed(VARIANTS))
        for name in order:
            folder = options.output / f"{name.replace(', ', '-').replace(' ', '-')}-{number}"
            own = [*options.overrides, *VARIANTS[name]]
            found[name].append(run(options.config, folder, own))
    print("| engine | MiB per rank | samples/s |\n|---|---|---|")
    for name, rows in found.items():
        memory, pace = max(row[0] for row in rows), median(row[1] for row in rows)
        print(f"| {name} | {memory:.0f} | {pace:.1f} |")


if __name__ == "__main__":
    main()
