"""A readout for language models: private blocks and norm, and a read-only copy of the unembedding
of the last module (SOLO, Yin et al., 2026)."""

import copy
from collections.abc import Callable, Iterator, Sequence
from typing import Annotated, Any, cast

import torch
from pydantic import Field
from torch import Tensor, nn

from pipeline_local.errors import FitsNowhereError, counted
from pipeline_local.learning.heads.has_copy import HasCopy
from pipeline_local.learning.heads.head import HEADS, Site
from pipeline_local.learning.tasks.next_token import HasHidden


class ReadoutHead(nn.Module, HasCopy):
    """Logits `temperature * norm(blocks(x)) @ weight.T`: [B, T, d] -> [B, T, V].

    Args:
        blocks: fresh copies of later blocks; none: only norm and unembedding.
        classifier: a copy of the network's own; it has `hidden` and `weight`.
        shared: whether the unembedding is the last module's, read-only; else it is trained here.
        rules: draw the blocks and the classifier afresh, in this order.
    """

    follows = "unembedding"

    def __init__(
        self,
        blocks: nn.Sequential,
        classifier: nn.Module,
        shared: bool,
        rules: Sequence[Callable[[nn.Module], object]],
    ) -> None:
        super().__init__()
        self.blocks = blocks
        self.classifier = classifier
        self.temperature = nn.Parameter(torch.empty(1))  # DeepSpeed takes no scalar
        self.shared = shared
        self.rules = rules
        self._own.weight.requires_grad_(not shared)

    @property
    def _own(self) -> HasHidden:
        return cast(HasHidden, self.classifier)  # the entry has looked

    @property
    def weight(self) -> Tensor:
        """The unembedding matrix [V, d]."""
        return self._own.weight

    @property
    def copy(self) -> nn.Module | None:
        """The norm and the unembedding, of which the latter is the copy."""
        return self.classifier if self.shared else None

    def hidden(self, x: Tensor) -> Tensor:
        """Map activations [B, T, d] to the last hidden state [B, T, d]."""
        # a scalar leaves the dtype of narrow activations as it is; a tensor with an axis would not
        return self._own.hidden(self.blocks(x)) * self.temperature.view(())

    def forward(self, x: Tensor) -> Tensor:
        """Map activations [B, T, d] to logits [B, T, V]."""
        return nn.functional.linear(self.hidden(x), self.weight)

    def _load_from_state_dict(
        self,
        state_dict: dict[str, Any],
        prefix: str,
        *more: Any,  # noqa: ANN401 (what torch gives)
    ) -> None:
        """Take a temperature without an axis, too: earlier versions saved it so."""
        if (saved := state_dict.get(name := f"{prefix}temperature")) is not None:
            state_dict[name] = saved.reshape(1)
        super()._load_from_state_dict(state_dict, prefix, *more)

    @torch.no_grad()
    def initialize(self) -> None:
        """Draw all weights afresh by their rules; the temperature begins at 1."""
        for part, rule in zip((*self.blocks, self.classifier), self.rules, strict=True):
            rule(part)
        nn.init.ones_(self.temperature)
        if self.shared:
            nn.init.zeros_(self.weight)  # until it begins

    @torch.no_grad()
    def begin(self, original: nn.Module) -> None:
        """Take over the network's own unembedding, where it is shared."""
        assert isinstance(original, HasHidden), "it is the network's classifier"
        if self.shared:
            self.weight.copy_(original.weight)

    @torch.no_grad()
    def follow(self, published: Iterator[Tensor]) -> None:
        """Take over the published unembedding [V, d]."""
        self.weight.copy_(next(published))


class Readout:
    """The registry entry: builds the heads, and says how often the unembedding is published."""

    follows = "unembedding"

    def __call__(
        self,
        site: Site,
        *,
        depth: Annotated[int, Field(ge=0)] = 2,
        refresh: Annotated[int, Field(ge=1)] = 10,
        private: bool = False,
    ) -> ReadoutHead:
        """Copy the next blocks and the network's classifier.

        Args:
            site: where the head is attached.
            depth: number of private blocks.
            refresh: steps from one publication of the unembedding to the next.
            private: whether each head trains an unembedding of its own instead.

        Raises:
            FitsNowhereError: the network's classifier has no unembedding.
        """
        if not isinstance(site.classifier, HasHidden):
            why = "the model's classifier is no norm with an unembedding"
            raise FitsNowhereError(why, "choose another head, or a language model")
        blocks = nn.Sequential(*map(copy.deepcopy, site.later[: site.copies]))
        rules = [*site.rules[: site.copies], site.rules[-1]]
        return ReadoutHead(blocks, copy.deepcopy(site.classifier), not private, rules)

    @staticmethod
    def copies(
        index: int, count: int, later: int, *, depth: int = 2, refresh: int = 10, private: bool
    ) -> int:
        """Return how many of the `later` blocks are copied: as many as asked for and there are."""
        return min(depth, later)

    @staticmethod
    def refresh(*, depth: int, refresh: int, private: bool) -> int:
        """The steps from one publication to the next; 0: there is none."""
        return 0 if private else refresh

    @staticmethod
    def title(*, depth: int, refresh: int, private: bool) -> str:
        """The options, for people."""
        shared = f"the last unembedding every {counted(refresh, 'step')}"
        own = "an own unembedding" if private else shared
        return f"{counted(depth, 'block')} and {own}"


HEADS.add("readout", Readout())
