"""What upstream reconciliation leaves behind for a fixed number of steps.

A module keeps each microbatch whose feedback it awaits, and each input gradient that it has sent
back and that its upstream neighbour has not heeded yet. Both are part of a checkpoint: a step that
is resumed finds what was on its way.
"""

from collections import deque
from collections.abc import Iterator, Mapping
from typing import NamedTuple

from torch import Tensor


class Kept(NamedTuple):
    """Tensors of one microbatch of an earlier step."""

    step: int
    microbatch: int
    tensors: tuple[Tensor, ...]


class FeedbackQueue:
    """First in, first out; can be saved and restored at any step.

    Args:
        name: opens the names of its tensors in a checkpoint.
    """

    def __init__(self, name: str) -> None:
        self._name = name
        self._kept: deque[Kept] = deque()

    def __len__(self) -> int:
        return len(self._kept)

    def push(self, step: int, microbatch: int, *tensors: Tensor) -> None:
        """Keep the tensors of a microbatch."""
        self._kept.append(Kept(step, microbatch, tensors))

    def pop(self) -> Kept:
        """Take the oldest."""
        return self._kept.popleft()

    def drop(self, last: int) -> None:
        """Let go of everything up to step `last`."""
        while self._kept and self._kept[0].step <= last:
            self._kept.popleft()

    def tensors(self) -> dict[str, Tensor]:
        """Everything, as `<name>.<step>.<microbatch>.<position>`."""
        return {
            f"{self._name}.{kept.step}.{kept.microbatch}.{position}": tensor
            for kept in self._kept
            for position, tensor in enumerate(kept.tensors)
        }

    def load(self, named: Mapping[str, Tensor]) -> None:
        """The inverse of `tensors`; names of others are passed over."""
        found: dict[tuple[int, int], dict[int, Tensor]] = {}
        for name, tensor in named.items():
            owner, *numbers = name.split(".")
            if owner == self._name:
                step, microbatch, position = map(int, numbers)
                found.setdefault((step, microbatch), {})[position] = tensor
        self._kept = deque(
            Kept(*key, tuple(tensors[i] for i in sorted(tensors)))
            for key, tensors in sorted(found.items())
        )

    def __iter__(self) -> Iterator[Kept]:
        return iter(self._kept)


class UnderWay:
    """What is under way between a module and its neighbours: a part of its checkpoint."""

    def __init__(self) -> None:
        self.awaiting = FeedbackQueue("awaiting")
        """Activations and labels for which the downstream neighbour's input gradient will come."""
        self.unheeded = FeedbackQueue("unheeded")
        """Input gradients on their way upstream."""

    def tensors(self) -> dict[str, Tensor]:
        """All of it, by name."""
        return {**self.awaiting.tensors(), **self.unheeded.tensors()}

    def load(self, named: Mapping[str, Tensor]) -> None:
        """The inverse of `tensors`."""
        self.awaiting.load(named)
        self.unheeded.load(named)
