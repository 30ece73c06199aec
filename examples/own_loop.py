"""Train three modules of your own in your own loop, without a configuration or a run folder.

Each module learns from its own loss. Nothing flows back from one to the one before.

Run it as `python examples/own_loop.py`.
"""

import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn

from pipeline_local import LocalModule, Rules, Step, Task


class Smooth(Task):
    def loss(self, outputs: Tensor, labels: Tensor) -> Tensor:  # your own
        return nn.functional.cross_entropy(outputs, labels, label_smoothing=0.1)

    def score(self, outputs: Tensor, labels: Tensor) -> Tensor:
        return (outputs.argmax(1) == labels).float().mean()


x, y = map(torch.as_tensor, load_digits(return_X_y=True))
x, sizes, modules = (x / 16).float(), (64, 96, 64, 32), []
for k in range(3):
    body = nn.Sequential(nn.Linear(sizes[k], sizes[k + 1]), nn.ReLU())
    head, rules = nn.Linear(sizes[k + 1], 10), Rules(task=Smooth((10,)))
    modules.append(LocalModule(k, body, head, torch.optim.Adam, rules))
for number in range(300):
    step, batch = Step(number, lr=0.003), torch.randint(1400, (64,))
    activations = x[batch]
    for module in modules:
        activations = module(activations, y[batch], step)  # detached: the next one's input
        module.signal()  # the head's gradient at the activations
        module.learn()  # the body's gradients
        module.update(step)
network = nn.Sequential(*(module.body for module in modules), modules[-1].head)
print(f"accuracy: {(network(x[1400:]).argmax(1) == y[1400:]).float().mean():.3f}")
