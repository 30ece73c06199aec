"""Stage times as predicted and as measured: `python experiments/predict.py OUTPUT CONFIG ...`.

Per configuration: a profile by two ranks at once, then a run on two stages for each way to cut,
whose summary holds both. Run it on a machine that does nothing else.
"""

import argparse
import json
import subprocess
import sys
from pathlib import Path
from statistics import median

COMMAND = (sys.executable, "-m", "pipeline_local")
CUTS = ("uniform", "auto")


def stages(config: Path, cuts: str, output: Path, more: list[str]) -> list[tuple[float, float]]:
    """(predicted, measured) seconds of each stage in an average step."""
    profile, run = output / f"{config.stem}.json", output / f"{config.stem}-{cuts}"
    profiles = [profile.with_name(f"{profile.stem}-{rank}.json") for rank in range(2)]
    if not profiles[0].exists():
        go("profile", config, *more, "modules.count=4", "modules.cuts=uniform", "--output", profile)
    named = f"modules.profile=[{','.join(map(str, profiles))}]"
    if not (run / "summary.json").exists():
        go(
            "train",
            config,
            *more,
            named,
            "modules.count=4",
            f"modules.cuts={cuts}",
            f"run.dir={run}",
        )
    facts = json.loads((run / "summary.json").read_text())
    return list(zip(facts["predicted_stage_seconds"], facts["stage_seconds"], strict=True))


def go(command: str, config: Path, *arguments: object) -> None:
    """One command on two stages."""
    line = [*COMMAND, command, config, "parallel.stages=2", *arguments]
    subprocess.run([str(word) for word in line], check=True, stdout=subprocess.DEVNULL)


def main() -> None:
    """Print a Markdown table and the median error."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("output", type=Path)
    parser.add_argument("configs", type=Path, nargs="+", metavar="CONFIG")
    parser.add_argument("--override", action="append", default=[], metavar="key=value")
    options = parser.parse_args()
    columns = ["configuration", "modules.cuts", "stage", "predicted, ms", "measured, ms", "error"]
    print(f"| {' | '.join(columns)} |\n{'|---' * len(columns)}|")
    errors = []
    for config in options.configs:
        for cuts in CUTS:
            found = stages(config, cuts, options.output, options.override)
            for number, (predicted, measured) in enumerate(found):
                errors.append(predicted / measured - 1)
                cells = [config.stem, cuts, number, f"{1000 * predicted:.1f}"]
                cells += [f"{1000 * measured:.1f}", f"{errors[-1]:+.1%}"]
                print(f"| {' | '.join(map(str, cells))} |", flush=True)
    print(f"\nmedian of the absolute errors: {median(map(abs, errors)):.1%}")


if __name__ == "__main__":
    main()
