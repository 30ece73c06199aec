"""Auxiliary heads: one file per family. A registry entry owns its name, options and depth."""

from pipeline_local.learning.heads import auglocal, ema, readout, simple  # noqa: F401 (they register)
from pipeline_local.learning.heads.ema import EmaHead
from pipeline_local.learning.heads.has_copy import HasCopy
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
from pipeline_local.learning.heads.layers import ToMap, output_shape
from pipeline_local.learning.heads.readout import ReadoutHead

__all__ = [
    "HEADS",
    "EmaHead",
    "HasCopy",
    "Head",
    "ReadoutHead",
    "Site",
    "ToMap",
    "build",
    "copies",
    "follows",
    "initialize",
    "output_shape",
    "refresh",
    "title",
]
