"""Time series: 1-D convolutions, whose activations are [B, channels, time].

Run it as `python examples/series.py [RUN_FOLDER]`.
"""

import sys

import torch
from torch import Tensor, nn

from pipeline_local import fit


def waves(count: int) -> tuple[Tensor, Tensor]:
    """Noisy sine, square and saw-tooth waves [count, 1, 64], and which one each is."""
    kind = torch.arange(count) % 3
    phase = torch.linspace(0, 4, 64) * (1 + torch.rand(count, 1)) + torch.rand(count, 1)
    sine = (2 * torch.pi * phase).sin()
    shapes = torch.stack([sine, sine.sign(), 2 * (phase % 1) - 1])
    return (shapes[kind, torch.arange(count)] + 0.2 * torch.randn(count, 64))[:, None], kind


def layer(inputs: int, outputs: int) -> nn.Module:
    return nn.Sequential(nn.Conv1d(inputs, outputs, 5, padding=2), nn.ReLU(), nn.MaxPool1d(2))


torch.manual_seed(0)
last = nn.Sequential(nn.AdaptiveAvgPool1d(1), nn.Flatten(), nn.Linear(32, 3))
model = nn.Sequential(layer(1, 16), layer(16, 32), layer(32, 32), last)
settings = {"modules": 3, "epochs": 2, "batch_size": 32, "head": {"name": "linear"}}
summary = fit(model, waves(960), waves(240), run_dir=(*sys.argv[1:], None)[0], **settings)
print(f"accuracy of each head: {summary['accuracy']}")
