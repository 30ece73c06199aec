"""Callbacks: early stopping, the best checkpoint, and a logger of your own.

Run it as `python examples/callbacks.py [RUN_FOLDER]`.
"""

import sys

from sklearn.datasets import load_digits
from torch import nn

from pipeline_local import BestCheckpoint, Callback, EarlyStopping, fit, load
from pipeline_local.training.callbacks import Facts, Run


class Csv(Callback):
    """One line per logged step, module and measurement; one file per stage."""

    def on_log(self, run: Run, facts: Facts) -> None:
        with (run.folder / f"log-{run.rank}.csv").open("a") as file:
            for module, measured in facts["modules"].items():
                for name, value in measured.items():
                    print(facts["step"], module, name, value, sep=",", file=file)


def network() -> nn.Module:
    return nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 64), nn.Linear(64, 10))


x, y = load_digits(return_X_y=True)
settings = {
    "modules": 2,
    "epochs": 30,
    "train": {"evaluate_every": 10},
    "checkpoint": {"every_steps": 10},
    "callbacks": [EarlyStopping(patience=3), BestCheckpoint(), Csv()],
    "run_dir": (*sys.argv[1:], "runs/callbacks")[0],
}
summary = fit(network(), (x[:1400] / 16, y[:1400]), (x[1400:] / 16, y[1400:]), **settings)
best = load(settings["run_dir"], network(), step="best")
print(f"stopped after {summary['steps']} of 300 steps")
