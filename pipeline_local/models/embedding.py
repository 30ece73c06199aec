"""The first block of a language model: its embeddings, with a table of its own or a tied one."""

from collections.abc import Iterator, Mapping
from typing import Literal

import torch
from torch import Tensor, nn

from pipeline_local.models.unembedding import Unembedding


class Embedding(nn.Module):
    """Token ids [B, T] -> activations [B, T, d]: table, learned positions if any, dropout.

    Args:
        parts: the modules by their names in the model, "tokens", "positions" and "dropout" among
            the roles; the latter two may be missing.
    """

    def __init__(self, parts: Mapping[str, tuple[str, nn.Module]]) -> None:
        super().__init__()
        self._names = {role: name for role, (name, _) in parts.items()}
        for name, module in parts.values():
            self.add_module(name, module)

    def forward(self, ids: Tensor) -> Tensor:
        """As the model does it in front of its first layer."""
        names = self._names
        x: Tensor = self.table(ids)
        if "positions" in names:
            x = x + self.get_submodule(names["positions"])(positions(x))
        return self.get_submodule(names["dropout"])(x) if "dropout" in names else x

    @property
    def table(self) -> nn.Module:
        """The embeddings of the tokens; its `weight` is [V, d]."""
        return self.get_submodule(self._names["tokens"])


class TiedEmbedding(Embedding):
    """An embedding whose table is the unembedding.

    In a network of one module the two are one parameter. Else the table is a read-only copy, which
    follows the last module's unembedding as the copies of heads do (`HasCopy`, of learning).

    Args:
        parts: as for `Embedding`, on the meta device.
    """

    follows: Literal["unembedding"] = "unembedding"

    def __init__(self, parts: Mapping[str, tuple[str, nn.Module]]) -> None:
        super().__init__(parts)
        shape = self.table.get_parameter("weight").shape
        self.table.weight = nn.Parameter(torch.empty(shape, device="meta"), requires_grad=False)

    @property
    def copy(self) -> nn.Module:
        """The table."""
        return self.table

    def tie(self, classifier: nn.Module) -> None:
        """Make the table the very parameter of the network's unembedding."""
        assert isinstance(classifier, Unembedding), "it is the network's classifier"
        self.table.weight = classifier.weight

    @torch.no_grad()
    def begin(self, original: nn.Module) -> None:
        """Take over the network's own unembedding."""
        assert isinstance(original, Unembedding), "it is the network's classifier"
        self.follow(iter([original.weight]))

    @torch.no_grad()
    def follow(self, published: Iterator[Tensor]) -> None:
        """Take over the published unembedding [V, d]."""
        self.table.get_parameter("weight").copy_(next(published))


def positions(x: Tensor) -> Tensor:
    """The positions [1, T] of activations [B, T, d]."""
    return torch.arange(x.shape[1], device=x.device)[None]
