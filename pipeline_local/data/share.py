"""What one rank reads of each batch: all of it, or the microbatches of one replica."""

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class Share:
    """Some of the equal parts of every batch.

    Attributes:
        parts: number of parts, its microbatches.
        own: the parts that are read, in order.
    """

    parts: int = 1
    own: tuple[int, ...] = (0,)

    @property
    def is_whole(self) -> bool:
        """Whether it is all of the batch."""
        return len(self.own) == self.parts

    def rows(self, batch_size: int) -> list[int]:
        """Return the positions of its samples in a batch, whose size is a multiple of the parts
        unless it is whole."""
        if self.is_whole:
            return list(range(batch_size))
        size = batch_size // self.parts
        return [row for part in self.own for row in range(part * size, (part + 1) * size)]

    def of(self, tensor: Tensor) -> Tensor:
        """Return its samples of a batch [B, ...]."""
        return tensor if self.is_whole else tensor[self.rows(len(tensor))]


WHOLE = Share()
"""All of every batch."""
