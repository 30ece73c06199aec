"""The same program under torchrun, for several hosts: each rank runs it and becomes one stage.

Run it as `torchrun --nproc-per-node 2 examples/torchrun.py [RUN_FOLDER]`.
"""

import os
import sys

from sklearn.datasets import load_digits
from torch import nn

from pipeline_local import fit

x, y = load_digits(return_X_y=True)
layers = [nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10)]
model = nn.Sequential(*layers)  # the first rank's weights count
summary = fit(
    model,
    (x[:1400] / 16, y[:1400]),
    (x[1400:] / 16, y[1400:]),
    epochs=3,
    run_dir=(*sys.argv[1:], "runs/torchrun")[0],
)
rank = os.environ.get("RANK", "0")
print(f"rank {rank}: {summary['steps']} steps, weights {model[0].weight.sum().item():.6f}")
