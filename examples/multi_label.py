"""Multi-label classification: any number of classes per sample, as rows of 0 and 1.

Run it as `python examples/multi_label.py [RUN_FOLDER]`.
"""

import sys

from sklearn.datasets import make_multilabel_classification
from torch import nn

from pipeline_local import fit

x, y = make_multilabel_classification(1200, n_features=20, n_classes=5, random_state=0)
layers = [nn.Linear(20, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 5)]
summary = fit(
    nn.Sequential(*layers),
    (x[:1000] / 10, y[:1000]),
    (x[1000:] / 10, y[1000:]),
    task="multi_label",
    modules=2,
    epochs=10,
    lr=0.5,
    batch_size=50,
    run_dir=(*sys.argv[1:], None)[0],
)
print(f"part of the labels that is right, for each head: {summary['accuracy']}")
