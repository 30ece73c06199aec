"""Early exits by confidence: each sample leaves at the first head that is sure enough."""

import torch
from torch import Tensor

BINS = 15
"""Number of bins of the expected calibration error (Guo et al., 2017)."""


def top(log_probabilities: Tensor) -> Tensor:
    """Return the largest probability of each sample: [B, classes] -> [B]."""
    return log_probabilities.amax(1).exp()


def leave_at(confidence: Tensor, threshold: float) -> Tensor:
    """Return the head, from 0, at which each sample leaves: [N, K] -> [N].

    Args:
        confidence: the top probability of each head.
        threshold: that a head must reach; the last head takes all that are left.
    """
    reached = confidence >= threshold
    reached[:, -1] = True
    return reached.int().argmax(1)  # of equal ones the first


def calibration_error(confidence: Tensor, right: Tensor) -> float:
    """Return the expected calibration error: how far confidence and accuracy are apart, as the mean
    over bins of equal width, weighted by their samples.

    Args:
        confidence: top probabilities [N].
        right: whether each prediction is correct [N].
    """
    bins = (confidence * BINS).ceil().long().clamp(1, BINS) - 1
    gaps = right.double() - confidence.double()
    summed = torch.zeros(BINS, dtype=torch.float64).index_add_(0, bins, gaps)
    return float(summed.abs().sum() / max(1, len(gaps)))
