"""Measures how well two neighbours agree about the tensor between them, for metrics."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from pipeline_local.engines.gradients import at_least_float32

SLICES = 8
"""Number of slices of a batch in which two gradients are compared."""


@dataclass(frozen=True)
class Comparison:
    """The agreement of input gradient g and signal s at one tensor; scalars, means over samples.

    Attributes:
        discord: squared distance of g and s (per-sample gradients).
        cosine: cosine of g and s.
        input_norm: norm of g.
        signal_norm: norm of s.
    """

    discord: Tensor
    cosine: Tensor
    input_norm: Tensor
    signal_norm: Tensor


def compare(g: Tensor, s: Tensor) -> Comparison:
    """Compare an input gradient and a signal, both [B, ...], sample by sample.

    It takes a few samples at a time: the whole batch in float32, with its temporaries, would take
    several times the memory of gradients in bfloat16, and make a logged step the largest of all.
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
    """For each sample: cosine, both norms and squared distance; [B] each."""
    rows_g, rows_s = at_least_float32(g).flatten(1), at_least_float32(s).flatten(1)
    norms = rows_g.norm(dim=1), rows_s.norm(dim=1)
    distance = (rows_g - rows_s).square_().sum(1)
    return (_directions(rows_g) * _directions(rows_s)).sum(1), *norms, distance


def _directions(rows: Tensor) -> Tensor:
    """Rows [B, n] at unit length (zeros stay zeros). The gradients of confident samples are so
    small that their squares would underflow: the largest element is scaled to one first."""
    largest = rows.detach().abs().amax(1, keepdim=True)
    return functional.normalize(rows / largest.clamp_min(torch.finfo(rows.dtype).tiny), dim=1)
