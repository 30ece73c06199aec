"""Several finished runs as one ensemble: `python experiments/together.py RUN RUN [RUN ...]`.

Prints the test accuracy of each run's last head, and of the sum of their log-probabilities. What
local learning's heads of one run are together `pipeline-local evaluate RUN` tells; this is for
networks that were trained apart, such as backpropagation's of different seeds.
"""

import argparse
from pathlib import Path

import torch
from torch import Tensor

from pipeline_local.data.skipping import Skipped
from pipeline_local.finished import load
from pipeline_local.learning.loss import IGNORE
from pipeline_local.pipeline.schedule import Evaluate
from pipeline_local.pipeline.source import Source


@torch.no_grad()
def votes(run: Path) -> tuple[Tensor, Tensor]:
    """The last head's log-probabilities [N, classes] of the test set, and labels [N]."""
    device = torch.device("cpu")
    blueprint, modules, step = load(run, device)
    action, crossing = [Evaluate(step)], blueprint.crossing
    source = Source(
        blueprint.config, blueprint.info, action, range(0), device, blueprint.dtype, Skipped()
    )
    found = []
    for _ in range(blueprint.schedule.test_batches):
        x, labels = source.recv()
        own = x
        for module in modules:
            if module.index > 0:
                x = crossing.widen(crossing.round_activations(x))
            x, own, _ = module.eval().evaluate(x, labels)
        found.append((own, labels))
    source.close()
    guesses, labels = (torch.cat(parts) for parts in zip(*found, strict=True))
    return guesses[labels != IGNORE], labels[labels != IGNORE]


def main() -> None:
    """Print the accuracies."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("runs", type=Path, nargs="+")
    runs = parser.parse_args().runs
    total, labels = torch.tensor(0.0), torch.tensor(0)
    for run in runs:
        own, labels = votes(run)
        print(f"{run}: {100 * (own.argmax(1) == labels).double().mean():.2f} %")
        total = total + own
    print(f"together: {100 * (total.argmax(1) == labels).double().mean():.2f} %")


if __name__ == "__main__":
    main()
