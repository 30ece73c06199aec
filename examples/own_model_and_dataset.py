"""Train a residual network on a `Dataset` with random transforms, with your own loss and metric.

python examples/own_model_and_dataset.py [RUN_FOLDER]
"""

import sys

from sklearn.datasets import load_digits
from torch import nn, tensor
from torch.utils.data import Dataset, random_split
from torchvision.transforms.v2 import RandomCrop

from pipeline_local import fit


class Residual(nn.Module):
    def __init__(self):
        super().__init__()
        self.layers = nn.ModuleList(nn.Conv2d(min(16**k, 16), 16, 3, padding=1) for k in range(4))
        self.classifier = nn.Linear(16, 10)

    def forward(self, x):
        for layer in self.layers:
            x = x + layer(x).relu()
        return self.classifier(x.amax((2, 3)))


class Digits(Dataset):
    data, transform, __len__ = load_digits(), RandomCrop(8, padding=1), lambda self: 1797

    def __getitem__(self, index):
        return self.transform(tensor(self.data.images[index][None] / 16)), self.data.target[index]


def top3(outputs, labels):
    return (outputs.topk(3).indices == labels[:, None]).any(1).float().mean()


loss, split = nn.CrossEntropyLoss(label_smoothing=0.1), random_split(Digits(), [0.8, 0.2])
settings = {"modules": 2, "epochs": 8, "lr": 0.03, "loss": loss, "metric": top3}
print(fit(Residual(), *split, run_dir=(*sys.argv[1:], None)[0], **settings)["top3"])
