"""Train an `nn.Sequential` of your own on two stages: two processes, started by `fit`.

Run it as `python examples/fit_two_stages.py [RUN_FOLDER]`.
"""

import sys

from sklearn.datasets import load_digits
from torch import nn

from pipeline_local import fit

x, y = load_digits(return_X_y=True)
train, test = (x[:1400] / 16, y[:1400]), (x[1400:] / 16, y[1400:])
layers = [nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10)]
model = nn.Sequential(*layers)
summary = fit(model, train, test, stages=2, epochs=20, run_dir=(*sys.argv[1:], None)[0])
print(f"accuracy of the two heads: {summary['accuracy']}")
