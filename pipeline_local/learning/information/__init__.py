"""Information terms: one file per kind. A registry entry owns its network, its loss and options."""

from pipeline_local.learning.information.contrast import contrast
from pipeline_local.learning.information.informed import (
    InformedHead,
    LocalLoss,
    local_loss,
    parts,
    term_of,
    weights,
)
from pipeline_local.learning.information.reconstruction import reconstruction
from pipeline_local.learning.information.term import INFORMATION, Ends, Information, build

__all__ = [
    "INFORMATION",
    "Ends",
    "Information",
    "InformedHead",
    "LocalLoss",
    "build",
    "contrast",
    "local_loss",
    "parts",
    "reconstruction",
    "term_of",
    "weights",
]
