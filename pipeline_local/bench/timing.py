"""Interleaved timing (A B C A B C ...), so that drifts of the machine affect all variants alike."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from statistics import median

import torch

from pipeline_local.record.wall_time import timed


@dataclass(frozen=True)
class Times:
    """The seconds of each repetition of one variant."""

    seconds: tuple[float, ...]

    @property
    def median(self) -> float:
        """The median in seconds."""
        return median(self.seconds)

    @property
    def spread(self) -> float:
        """Largest minus smallest time, over the median."""
        return (max(self.seconds) - min(self.seconds)) / self.median


def interleaved(
    variants: Mapping[str, Callable[[], None]], runs: int, device: torch.device
) -> dict[str, Times]:
    """Time every variant `runs` times, interleaved, after one untimed repetition of each.

    Args:
        variants: the functions to time; each call is one repetition.
        runs: timed repetitions of each variant.
        device: synchronised before the clock is read.
    """
    seconds: dict[str, list[float]] = {name: [] for name in variants}
    for turn in range(runs + 1):
        for name, work in variants.items():
            took = timed(device, work)
            if turn:
                seconds[name].append(took)
    return {name: Times(tuple(row)) for name, row in seconds.items()}
