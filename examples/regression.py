"""Regression: the labels are floating-point numbers, so the loss is the squared error.

Run it as `python examples/regression.py [RUN_FOLDER]`.
"""

import sys

from sklearn.datasets import load_diabetes
from torch import nn

from pipeline_local import fit

x, y = load_diabetes(return_X_y=True)
x, y = x / x.std(0), (y - y.mean()) / y.std()
layers = [nn.Linear(10, 32), nn.ReLU(), nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 1)]
summary = fit(
    nn.Sequential(*layers),
    (x[:350], y[:350]),
    (x[350:], y[350:]),
    modules=2,
    epochs=20,
    batch_size=32,
    lr=0.01,
    run_dir=(*sys.argv[1:], None)[0],
)
print(f"mean absolute error of each head: {summary['mean_absolute_error']}")
