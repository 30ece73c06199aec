"""A model for trial steps, with a block of any kind in the middle."""

from torch import nn

from pipeline_local.data.datasets import describe
from pipeline_local.placement.draw import draw


def layers(middle, num_classes):
    first = nn.Sequential(nn.Flatten(), nn.Linear(64, 12), nn.ReLU())
    return [("first", first), ("middle", middle), ("last", nn.Linear(12, num_classes))]


def tried(config):
    return draw(config, describe(config.data), tries=True)
