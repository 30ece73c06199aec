"""Several finished runs as one ensemble: `python experiments/together.py RUN RUN [RUN ...]`.

Prints the test accuracy of each run, all its heads together, and of all runs together: the sum of
their log-probabilities decides.
"""

import argparse
from pathlib import Path

import torch
from torch import Tensor

from pipeline_local.configfile import configfile
from pipeline_local.data.datasets import describe
from pipeline_local.data.images.batches import test_batches
from pipeline_local.finished.predictor import Predictor
from pipeline_local.layout import IGNORE_LABEL


def log_probabilities(run: Path) -> tuple[Tensor, Tensor]:
    """A run's log-probabilities [N, classes] of its test set, and labels [N]."""
    data, predict = configfile.load(run / "config.yaml").data, Predictor(run, heads="all")
    found = [(predict(images), labels) for images, labels in test_batches(data, describe(data))]
    guesses, labels = (torch.cat(parts) for parts in zip(*found, strict=True))
    return guesses[labels != IGNORE_LABEL], labels[labels != IGNORE_LABEL]


def main() -> None:
    """Print the accuracies."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("runs", type=Path, nargs="+")
    runs = parser.parse_args().runs
    total, labels = torch.tensor(0.0), torch.tensor(0)
    for run in runs:
        own, labels = log_probabilities(run)
        print(f"{run}: {100 * (own.argmax(1) == labels).double().mean():.2f} %")
        total = total + own
    print(f"together: {100 * (total.argmax(1) == labels).double().mean():.2f} %")


if __name__ == "__main__":
    main()
