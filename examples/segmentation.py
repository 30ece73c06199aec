"""Dense classification: one class per pixel. Labels are maps [H, W]; the border (255) is ignored.

Run it as `python examples/segmentation.py [RUN_FOLDER]`.
"""

import sys

import torch
from torch import Tensor, nn

from pipeline_local import fit


def discs(count: int) -> tuple[Tensor, Tensor]:
    """Noisy images [count, 1, 16, 16] of a bright disc, and the pixels that are in it."""
    rows, columns = torch.meshgrid(torch.arange(16), torch.arange(16), indexing="ij")
    middle = torch.randint(4, 12, (2, count, 1, 1))
    inside = ((rows - middle[0]) ** 2 + (columns - middle[1]) ** 2 < 16).long()
    images = inside + 0.5 * torch.randn(count, 16, 16)
    inside[:, [0, -1]] = inside[:, :, [0, -1]] = 255
    return images[:, None], inside


def layer(inputs: int, outputs: int) -> nn.Module:
    return nn.Sequential(nn.Conv2d(inputs, outputs, 3, padding=1), nn.ReLU())


torch.manual_seed(0)
model = nn.Sequential(layer(1, 8), layer(8, 8), layer(8, 8), nn.Conv2d(8, 2, 1))
summary = fit(
    model,
    discs(256),
    discs(64),
    task={"name": "dense", "ignore": 255},
    modules=2,
    epochs=4,
    batch_size=16,
    run_dir=(*sys.argv[1:], None)[0],
)
print(f"part of the pixels that is right, for each head: {summary['accuracy']}")
