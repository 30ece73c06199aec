"""Which axis holds the channels: followed through the operations of a block, layers or functions.

A convolution takes and makes channels on axis 1, a linear layer on the last one. What only moves
axes, and what works element by element, keeps them.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

_MADE = -1
"""The label of an axis of channels that an operation has made; others have their number in x."""
Labels = tuple[int | None, ...]
_FIRST = ("conv", "batch_norm", "instance_norm", "group_norm", "max_pool", "avg_pool")
_LAST = {"linear", "matmul", "__matmul__", "layer_norm", "rms_norm", "embedding", "lstm", "gru"}
_LAST |= {"rnn_tanh", "rnn_relu", "_native_multi_head_attention", "_transformer_encoder_layer_fwd"}


class Channels(TorchFunctionMode):
    """Watches what becomes of a block's input, as a context.

    Args:
        x: the input.

    Attributes:
        taken: for each operation that takes the channels of x, the axis where it finds them, and
            its name.
    """

    def __init__(self, x: Tensor) -> None:
        super().__init__()
        self.taken: list[tuple[int, str]] = []
        # the tensors, too: another one could get the identity of one that is gone
        self._known: dict[int, tuple[Tensor, Labels]] = {id(x): (x, tuple(range(x.ndim)))}

    def made(self, y: Tensor) -> int | None:
        """The axis of y on which an operation has put channels; None where it does not show."""
        labels = self._labels(y) or ()
        return labels.index(_MADE) if labels.count(_MADE) == 1 else None

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:  # noqa: ANN401 (whatever it gives)
        """Call the operation, and note what it does with the channels."""
        out = func(*args, **(kwargs or {}))
        got = [value for value in (*args, *(kwargs or {}).values()) if isinstance(value, Tensor)]
        result = out[0] if isinstance(out, tuple) and out else out
        if got and isinstance(result, Tensor) and result.ndim > 1:
            with torch._C.DisableTorchFunction():
                self._note(getattr(func, "__name__", ""), got, result)
        return out

    def _note(self, name: str, got: list[Tensor], out: Tensor) -> None:
        source = next((value for value in got if self._labels(value)), got[0])
        axis = _channel_axis(name, source, got)
        if axis is not None:
            labels = self._labels(source)
            found = None if labels is None else labels[axis]
            if found is not None and found > 0:
                self.taken.append((found, name))
            made: list[int | None] = [None] * out.ndim
            made[axis] = _MADE
            self._keep(out, tuple(made))
            return
        for value in got:
            labels = self._labels(value)
            if labels is not None and value is not out:
                self._keep(out, _moved(labels, value, out))
                return

    def _keep(self, out: Tensor, labels: Labels) -> None:
        if len(labels) == out.ndim and any(label is not None for label in labels):
            self._known[id(out)] = out, labels

    def _labels(self, value: Tensor) -> Labels | None:
        known = self._known.get(id(value))
        return known[1] if known else None


def _channel_axis(name: str, source: Tensor, got: Sequence[Tensor]) -> int | None:
    """The axis that an operation takes for the channels, as it counts them."""
    if source.ndim > 2 and any(word in name for word in _FIRST):
        return 1
    of_weights = not name.endswith("matmul") or _is_weight(got)
    return -1 if name in _LAST and of_weights else None


def _is_weight(got: Sequence[Tensor]) -> bool:
    return len(got) == 2 and isinstance(got[1], nn.Parameter) and got[1].ndim == 2


def _moved(labels: Labels, before: Tensor, after: Tensor) -> Labels:
    """The labels of a view: an axis is known by its stride and its size."""
    if not after._is_view():
        return labels if after.shape == before.shape else ()
    where = {
        (stride, size): label
        for stride, size, label in zip(before.stride(), before.shape, labels, strict=True)
        if size > 1
    }
    return tuple(where.get(key) for key in zip(after.stride(), after.shape, strict=True))
