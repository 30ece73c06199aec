"""Train a residual network on a `Dataset` with random transforms, with your own loss and metric.

Run it as `python examples/own_model_and_dataset.py [RUN_FOLDER]`.
"""

import sys

from sklearn.datasets import load_digits
from torch import Tensor, nn, tensor
from torch.utils.data import Dataset, random_split
from torchvision.transforms.v2 import RandomCrop

from pipeline_local import fit


class Residual(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Conv2d(1 if k == 0 else 16, 16, 3, 1, 1) for k in range(4))
        self.last = nn.Linear(16, 10)

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = x + layer(x).relu()
        return self.last(x.amax((2, 3)))


class Digits(Dataset):
    data, crop = load_digits(), RandomCrop(8, padding=1)

    def __len__(self) -> int:
        return len(self.data.target)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        image = self.data.images[index, None] / 16
        return self.crop(tensor(image)), self.data.target[index]


def top3(outputs: Tensor, labels: Tensor) -> Tensor:
    return (outputs.topk(3).indices == labels[:, None]).any(1).float().mean()


settings = {"modules": 2, "epochs": 8, "lr": 0.03, "metric": top3}
settings |= {"loss": nn.CrossEntropyLoss(label_smoothing=0.1), "run_dir": (*sys.argv[1:], None)[0]}
print(fit(Residual(), *random_split(Digits(), [0.8, 0.2]), **settings)["top3"])
