"""A callback that keeps an exponential moving average of the weights, stage by stage.

Run it as `python examples/moving_average.py [RUN_FOLDER]`.
"""

import sys
from pathlib import Path

from safetensors.torch import load_file, save_file
from sklearn.datasets import load_digits
from torch import Tensor, nn

from pipeline_local import Callback, fit
from pipeline_local.training.callbacks import Facts, Run


class MovingAverage(Callback):
    def on_start(self, run: Run, step: int) -> None:
        self.means: dict[str, Tensor] = run.state()

    def on_step(self, run: Run, step: int) -> None:
        for name, weight in run.state().items():
            self.means[name].lerp_(weight, 0.1)

    def on_end(self, run: Run, facts: Facts) -> None:
        save_file(self.means, run.folder / f"average-{run.rank}.safetensors")


x, y = load_digits(return_X_y=True)
data = (x[:1400] / 16, y[:1400]), (x[1400:] / 16, y[1400:])
model = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 64), nn.Linear(64, 10))
folder = Path((*sys.argv[1:], "runs/average")[0])
fit(model, *data, stages=2, epochs=5, run_dir=folder, callbacks=[MovingAverage()])
averages = {}
for file in folder.glob("average-*"):  # each stage has written its own
    averages |= load_file(file)
model.load_state_dict(averages, strict=True)
print("averaged:", *sorted(averages))
