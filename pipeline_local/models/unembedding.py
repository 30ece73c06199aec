"""The last block of a language model: its final norm and its unembedding, as one."""

from torch import Tensor, nn


class Unembedding(nn.Module):
    """Activations [B, T, d] -> logits [B, T, V]: the final norm, then the unembedding's matrix.

    Args:
        norm: the final norm, [B, T, d] -> [B, T, d].
        unembedding: a linear layer [V, d] without a bias.
        names: dotted paths that hold the two: their tensors' names in a state dict begin with them.

    Attributes:
        norm: the final norm.
        unembedding: the linear layer.

    Raises:
        ValueError: the unembedding has a bias, which `hidden` and `weight` could not tell.
    """

    norm: nn.Module
    unembedding: nn.Module

    def __init__(
        self,
        norm: nn.Module,
        unembedding: nn.Linear,
        names: tuple[str, str] = ("norm", "unembedding"),
    ) -> None:
        super().__init__()
        if unembedding.bias is not None:
            raise ValueError("its unembedding has a bias")
        for own, name, module in zip(
            ("norm", "unembedding"), names, (norm, unembedding), strict=True
        ):
            _hold(self, name, module)
            self.__dict__[own] = module  # beside the path, which a state dict shows

    @property
    def weight(self) -> Tensor:
        """The matrix of the unembedding [V, d]."""
        return self.unembedding.get_parameter("weight")

    def hidden(self, x: Tensor) -> Tensor:
        """Return the normed activations [B, T, d], which `weight` maps to logits."""
        y: Tensor = self.norm(x)
        return y

    def forward(self, x: Tensor) -> Tensor:
        """Return the logits [B, T, V]."""
        logits: Tensor = self.unembedding(self.hidden(x))
        return logits


def _hold(owner: nn.Module, path: str, module: nn.Module) -> None:
    """Make a module a submodule under a dotted path; what is between is empty."""
    outer, _, rest = path.partition(".")
    if not rest:
        owner.add_module(outer, module)
        return
    if outer not in owner._modules:
        owner.add_module(outer, nn.Module())
    _hold(owner.get_submodule(outer), rest, module)
