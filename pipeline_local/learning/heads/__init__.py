"""Auxiliary heads: one file per family. A registry entry owns its name, options and depth."""

from pipeline_local.learning.heads.auglocal import AugLocal, AugLocalHead
from pipeline_local.learning.heads.ema import EmaHead
from pipeline_local.learning.heads.follower import Follower
from pipeline_local.learning.heads.head import (
    HEADS,
    Head,
    Site,
    build,
    copies,
    follows,
    initialize,
    refresh,
    title,
)
from pipeline_local.learning.heads.layers import MeanPool, ToMap, output_shape, readout
from pipeline_local.learning.heads.readout import ReadoutHead
from pipeline_local.learning.heads.simple import conv, linear, mlp

__all__ = [
    "HEADS",
    "AugLocal",
    "AugLocalHead",
    "EmaHead",
    "Follower",
    "Head",
    "MeanPool",
    "ReadoutHead",
    "Site",
    "ToMap",
    "build",
    "conv",
    "copies",
    "follows",
    "initialize",
    "linear",
    "mlp",
    "output_shape",
    "readout",
    "refresh",
    "title",
]
