"""Auxiliary heads: one file per family. A registry entry owns its name, options and depth."""

from pipeline_local.learning.heads.auglocal import AugLocal, AugLocalHead
from pipeline_local.learning.heads.ema import EmaHead
from pipeline_local.learning.heads.head import (
    HEADS,
    Head,
    Site,
    build,
    copies,
    initialize,
    refresh,
    title,
)
from pipeline_local.learning.heads.layers import MeanPool, ToMap, output_shape, readout
from pipeline_local.learning.heads.simple import conv, linear, mlp

__all__ = [
    "HEADS",
    "AugLocal",
    "AugLocalHead",
    "EmaHead",
    "Head",
    "MeanPool",
    "Site",
    "ToMap",
    "build",
    "conv",
    "copies",
    "initialize",
    "linear",
    "mlp",
    "output_shape",
    "readout",
    "refresh",
    "title",
]
