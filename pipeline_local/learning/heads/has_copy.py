"""Parts with read-only copies of parameters of a later module, which follow the originals."""

from abc import abstractmethod
from collections.abc import Iterator
from typing import Literal, Protocol, runtime_checkable

from torch import Tensor, nn


@runtime_checkable
class HasCopy(Protocol):
    """Such a part: a head, or a tied embedding. The copies have no optimizer and get no gradients.

    Attributes:
        follows: whether they are of the next module's first block, or of the last module's
            unembedding, from which they come over all modules between.
    """

    follows: Literal["block", "unembedding"]

    @property
    @abstractmethod
    def copy(self) -> nn.Module | None:
        """The copied module; None where this head copies nothing."""

    @abstractmethod
    def begin(self, original: nn.Module) -> None:
        """Take over what is copied, as it is initialised."""

    @abstractmethod
    def follow(self, published: Iterator[Tensor]) -> None:
        """Take over published parameters, or move towards them.

        Args:
            published: gives the parameters in order; exactly as many are taken.
        """
