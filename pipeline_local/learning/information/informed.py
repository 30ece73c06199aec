"""A head with an information term beside it, and the local loss of both."""

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, NamedTuple

from torch import Tensor, nn

from pipeline_local.config import InformationConfig
from pipeline_local.learning.heads import initialize
from pipeline_local.learning.information.term import Information
from pipeline_local.learning.tasks import Reader, Task


class InformedHead(nn.Module):
    """A head whose module's local loss has an information term: activations -> the head's outputs.

    Args:
        head: the head alone.
        information: the term; only `local_loss` runs it.
        task_weight: weight of the head's own loss.
        weight: weight of the term.
    """

    def __init__(
        self, head: nn.Module, information: Information, task_weight: float, weight: float
    ) -> None:
        super().__init__()
        self.head = head
        self.information = information
        self.task_weight = task_weight
        self.weight = weight

    def forward(self, y: Tensor) -> Tensor:
        """Map activations [B, ...] to the head's outputs [B, ...]."""
        outputs: Tensor = self.head(y)
        return outputs

    def initialize(self) -> None:
        """Draw all weights afresh; those of the head as if it were alone."""
        initialize(self.head)
        initialize(self.information)


class LocalLoss(NamedTuple):
    """The local loss of a batch.

    Attributes:
        total: what the module descends, a scalar.
        outputs: of the head, as its reader gives them.
        information: the term, unweighted; None where there is none.
    """

    total: Tensor
    outputs: Any
    information: Tensor | None = None


def local_loss(
    head: nn.Module,
    read: Reader,
    task: Task,
    y: Tensor,
    labels: Tensor,
    x: Tensor | None = None,
    networks: AbstractContextManager[None] | None = None,
) -> LocalLoss:
    """Return the local loss of a module's head at its activations.

    Args:
        head: with or without an information term.
        read: runs it (`Task.reader`).
        task: the loss of the head's outputs.
        y: activations [B, ...].
        labels: of the same samples [B, ...].
        x: input of the module [B, ...]; no gradient flows into it. None where there is no term.
        networks: a context for the head and the term's network, such as autocast.
    """
    term = term_of(head)
    with networks or nullcontext():
        outputs = read(y)
        prediction: Tensor | None = None if term is None else term(y)
    loss = task.loss(outputs, labels)
    if prediction is None:
        return LocalLoss(loss, outputs)
    assert isinstance(head, InformedHead), "there is a term"
    assert x is not None, "the input is kept for it"
    information = head.information.loss(prediction, x.detach(), labels)
    return LocalLoss(
        head.task_weight * loss + head.weight * information, outputs, information.detach()
    )


def parts(head: nn.Module) -> list[nn.Module]:
    """Return the networks of a head that run on their own: itself, or it and its term's."""
    return [head.head, head.information] if isinstance(head, InformedHead) else [head]


def term_of(head: nn.Module) -> Information | None:
    """Return the information term beside a head; None where there is none."""
    return head.information if isinstance(head, InformedHead) else None


def weights(config: InformationConfig, index: int, count: int) -> Sequence[float]:
    """Return the weights of the head's own loss and of the term.

    Args:
        config: has each for the first and the last module with an auxiliary head; between them
            they are linear.
        index: the module, from 0.
        count: number of modules.
    """
    part = index / (count - 2) if count > 2 else 0.0

    def at(weight: float | tuple[float, float]) -> float:
        first, last = weight if isinstance(weight, tuple) else (weight, weight)
        return (1 - part) * first + part * last

    return at(config.task_weight), at(config.weight)
