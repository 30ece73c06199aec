"""How far two neighbours agree about the tensor between them, for people to see."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from pipeline_local.learning.reconcile import wide

SLICES = 8
"""Parts of a batch in which two gradients are compared."""


@dataclass(frozen=True)
class Comparison:
    """How far two neighbours agree about the tensor between them; scalars, means over samples."""

    discord: Tensor
    cosine: Tensor
    input_norm: Tensor
    signal_norm: Tensor


def compare(g: Tensor, s: Tensor) -> Comparison:
    """Compare input gradient and signal, both [B, ...], sample by sample.

    A few samples at a time: the whole batch in float32, and what is made of it, would take several
    times the room of gradients in bfloat16, and a step that is logged more than any other.
    """
    few = math.ceil(len(g) / SLICES)
    parts = [_rows(*pair) for pair in zip(torch.split(g, few), torch.split(s, few), strict=True)]
    cosines, norms_g, norms_s, distances = (torch.cat(rows) for rows in zip(*parts, strict=True))
    return Comparison(
        discord=len(g) * distances.sum(),
        cosine=cosines.mean(),
        input_norm=len(g) * norms_g.mean(),
        signal_norm=len(g) * norms_s.mean(),
    )


def _rows(g: Tensor, s: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Of each sample: cosine, both norms, squared distance; [B] each."""
    rows_g, rows_s = wide(g).flatten(1), wide(s).flatten(1)
    norms = rows_g.norm(dim=1), rows_s.norm(dim=1)
    distance = (rows_g - rows_s).square_().sum(1)
    return (_directions(rows_g) * _directions(rows_s)).sum(1), *norms, distance


def _directions(rows: Tensor) -> Tensor:
    """Rows [B, n] at unit length (zeros stay zeros). The gradients of confident samples are so
    small that their squares would vanish: the largest element is brought to one first."""
    largest = rows.detach().abs().amax(1, keepdim=True)
    return functional.normalize(rows / largest.clamp_min(torch.finfo(rows.dtype).tiny), dim=1)
