"""Run every variant of a sweep with every seed: `python experiments/sweep.py SWEEP.yaml OUTPUT`.

A sweep file holds `config` (the file that all runs share), `common` (overrides of all runs),
`seeds` and `variants` (name -> overrides). Each run is the command

    pipeline-local train CONFIG COMMON VARIANT train.seed=SEED run.dir=OUTPUT/VARIANT/seed-SEED

A run that is complete is skipped and one that was cut off is resumed, so the same command goes on
after any interruption. All variants with the first seed come first.
"""

import argparse
import itertools
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import yaml


@dataclass(frozen=True)
class Run:
    """One command and the folder it fills."""

    folder: Path
    command: tuple[str, ...]

    def go(self) -> str:
        """Do what is left of it; a line that says how it ended."""
        if (self.folder / "summary.json").exists():
            return f"{self.folder}: complete already"
        self.folder.parent.mkdir(parents=True, exist_ok=True)
        log = self.folder.with_suffix(".log")
        with log.open("a") as output:
            code = subprocess.run(
                self.command, stdout=output, stderr=output, preexec_fn=lambda: os.nice(19)
            ).returncode
        return f"{self.folder}: exit code {code}{'' if code == 0 else f', see {log}'}"


def runs(sweep: Path, output: Path, overrides: list[str]) -> list[Run]:
    """Every run of a sweep, seed by seed."""
    plan = yaml.safe_load(sweep.read_text())
    train = (sys.executable, "-m", "pipeline_local", "train", plan["config"])
    found = []
    for seed, (name, own) in itertools.product(plan["seeds"], plan["variants"].items()):
        folder = output / name / f"seed-{seed}"
        last = [f"train.seed={seed}", f"run.dir={folder}", "run.resume=true"]
        found.append(Run(folder, (*train, *plan["common"], *own, *overrides, *last)))
    return found


def main() -> None:
    """Run the sweep, a few runs at a time."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("sweep", type=Path)
    parser.add_argument("output", type=Path)
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="such as data.root=PATH")
    parser.add_argument("--jobs", type=int, default=2, help="runs at a time")
    options = parser.parse_args()
    with ThreadPoolExecutor(options.jobs) as pool:
        todo = runs(options.sweep, options.output, options.overrides)
        for line in pool.map(Run.go, todo):
            print(line, flush=True)


if __name__ == "__main__":
    main()
