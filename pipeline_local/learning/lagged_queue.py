"""Queues of tensors of earlier steps, which checkpoints hold."""

from collections import deque
from collections.abc import Callable, Iterator, Mapping
from typing import NamedTuple

from torch import Tensor


class Kept(NamedTuple):
    """The tensors of one microbatch of an earlier step."""

    step: int
    microbatch: int
    tensors: tuple[Tensor, ...]


class LaggedQueue:
    """A first-in-first-out queue that can be saved and restored at any step.

    Args:
        name: prefix of the names of its tensors in a checkpoint.
    """

    def __init__(self, name: str) -> None:
        self._name = name
        self._kept: deque[Kept] = deque()

    def __len__(self) -> int:
        return len(self._kept)

    def push(self, step: int, microbatch: int, *tensors: Tensor) -> None:
        """Append the tensors of a microbatch.

        Raises:
            ValueError: there are none, and so a checkpoint would not know of it.
        """
        if not tensors:
            raise ValueError("a microbatch keeps at least one tensor, as checkpoints hold tensors")
        self._kept.append(Kept(step, microbatch, tensors))

    def of(self, step: int, microbatch: int) -> Kept:
        """Return the entry of this microbatch; it stays."""
        return next(kept for kept in self._kept if kept[:2] == (step, microbatch))

    def retain(self, is_needed: Callable[[Kept], bool]) -> None:
        """Remove all entries that are not needed."""
        self._kept = deque(filter(is_needed, self._kept))

    def pop(self) -> Kept:
        """Remove and return the oldest entry."""
        return self._kept.popleft()

    def drop(self, last: int) -> None:
        """Remove all entries up to and including step `last`."""
        while self._kept and self._kept[0].step <= last:
            self._kept.popleft()

    def tensors(self) -> dict[str, Tensor]:
        """Return all tensors, named `<name>.<step>.<microbatch>.<position>`."""
        return {
            f"{self._name}.{kept.step}.{kept.microbatch}.{position}": tensor
            for kept in self._kept
            for position, tensor in enumerate(kept.tensors)
        }

    def load(self, named: Mapping[str, Tensor]) -> None:
        """Restore the queue from the result of `tensors`; names with another prefix are ignored."""
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


_EARLIER = {"feedback.unheeded.": "lagged.pending.", "feedback.awaiting.": "lagged.awaiting."}
"""How earlier checkpoints name lagged messages, and how this program does."""


def current_names(named: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Renames the tensors of a checkpoint whose lagged messages have their earlier names."""

    def renamed(name: str) -> str:
        for old, new in _EARLIER.items():
            if name.startswith(old):
                return new + name.removeprefix(old)
        return name

    return {renamed(name): tensor for name, tensor in named.items()}
