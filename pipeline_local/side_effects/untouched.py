"""What further passes and evaluations leave as it was: the buffers and modes of a module's layers.

A pass may update buffers (running statistics, counters, the vectors of spectral norm), and may
compute with them. So a further pass over the same batch starts from the buffers that the first one
started from. It works on copies, as the graph of the first pass may need the tensors themselves.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

_SMALL = 1 << 14
"""Number of elements up to which a copy costs nothing."""


class Buffers:
    """The buffers of a module as they are now.

    Args:
        module: the module whose layers have them.
    """

    def __init__(self, module: nn.Module) -> None:
        layers = [layer for layer in module.modules() if layer._buffers]
        self._named = [(layer._buffers, dict(layer._buffers)) for layer in layers]
        self._versions = {id(t): t._version for _, named in self._named for t in _tensors(named)}
        self._copies: dict[int, Tensor] = {}
        self._copies = self._copied()

    def forget_constants(self) -> None:
        """Drop the copies of large buffers that nobody has written to since they were taken.

        Torch counts writes to a tensor, but not those of batch norms, whose buffers are small.
        """
        for buffers, named in self._named:
            for name, tensor in named.items():
                if tensor is None or tensor.numel() <= _SMALL or buffers.get(name) is not tensor:
                    continue
                if tensor._version == self._versions[id(tensor)]:
                    self._copies.pop(id(tensor), None)

    @contextmanager
    def again(self) -> Iterator[None]:
        """A context in which the layers have copies of these buffers instead of their own.

        It can be entered repeatedly, and starts from the same values each time.
        """
        copies = self._copied()
        own = [(buffers, dict(buffers)) for buffers, _ in self._named]
        for buffers, named in self._named:
            _replace(buffers, {n: None if t is None else copies[id(t)] for n, t in named.items()})
        try:
            yield
        finally:
            for buffers, named in own:
                _replace(buffers, named)

    @torch.no_grad()
    def _copied(self) -> dict[int, Tensor]:
        """A copy of each, one for all places of a shared buffer."""
        shared = {id(t): t for _, named in self._named for t in _tensors(named)}
        return {key: self._copies.get(key, t).clone() for key, t in shared.items()}


@contextmanager
def modes_kept(*modules: nn.Module) -> Iterator[None]:
    """A context at whose end every layer of some modules trains or evaluates as it did before."""
    modes = [(layer, layer.training) for module in modules for layer in module.modules()]
    try:
        yield
    finally:
        for layer, mode in modes:
            layer.training = mode


@contextmanager
def evaluating(module: nn.Module) -> Iterator[None]:
    """A context in which a module is in evaluation mode.

    At its end every layer has the mode and the buffers that it had: a layer that was frozen stays
    frozen, and a layer that counts its calls has not counted these.
    """
    modes = [(layer, layer.training) for layer in module.modules()]
    with modes_kept(module), Buffers(module).again():
        module.eval()
        try:
            yield
        finally:
            for layer, mode in modes:  # from the outside in, each by its own method, if it has one
                if layer.training != mode:
                    layer.train(mode)


def _tensors(named: dict[str, Tensor | None]) -> Iterator[Tensor]:
    return (tensor for tensor in named.values() if tensor is not None)


def _replace(buffers: dict[str, Tensor | None], named: dict[str, Tensor | None]) -> None:
    for name in buffers.keys() - named.keys():  # registered during a pass
        del buffers[name]
    for name, tensor in named.items():
        buffers[name] = tensor
