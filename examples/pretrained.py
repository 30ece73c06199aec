"""Fine-tune a torchvision model: training starts at the weights that the model has.

Run it as `python examples/pretrained.py [RUN_FOLDER]`.
"""

import sys

import torch
from sklearn.datasets import load_digits
from torch import nn
from torchvision.models import resnet18

from pipeline_local import fit

torch.manual_seed(0)
model = resnet18()  # yours: resnet18(weights="DEFAULT"), which needs a download
model.fc = nn.Linear(512, 10)
for layer in (model.conv1, model.bn1, model.layer1):  # these stay as they are
    layer.requires_grad_(False).eval()
before = model.layer1[0].conv1.weight.clone()
digits = load_digits()
x = torch.as_tensor(digits.images[:, None] / 16).float()
x, y = nn.functional.interpolate(x, size=32).repeat(1, 3, 1, 1), torch.as_tensor(digits.target)
summary = fit(
    model,
    (x[:1400], y[:1400]),
    (x[1400:1500], y[1400:1500]),
    modules=2,
    train={"steps": 8},
    batch_size=32,
    optimizer=lambda params: torch.optim.AdamW(params, lr=1e-3),
    head={"name": "linear"},
    run_dir=(*sys.argv[1:], None)[0],
)
print(f"accuracy of each head: {summary['accuracy']}")
print(f"frozen weights stayed: {torch.equal(before, model.layer1[0].conv1.weight)}")
