"""Fake tensors, of which no operation spends memory or time: as large as those of any device.

They are on the CPU, whatever device they stand for: without a GPU, torch runs no backward pass of a
GPU's fakes. What a GPU's kernels keep otherwise than a CPU's is imitated.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

_aten = torch.ops.aten
_IN_PLACE = (_aten._fused_sgd_.default, _aten._fused_adamw_.default)
_ATTENTION = _aten._scaled_dot_product_flash_attention_for_cpu.default

_FLOAT32_ON_A_GPU = (
    *("layer_norm", "group_norm", "native_layer_norm", "rms_norm", "cosine_similarity"),
    *("softmax.int", "log_softmax.int", "logsumexp", "softplus", "cumsum", "cumprod"),
    *("exp", "expm1", "log", "log2", "log10", "log1p", "reciprocal", "rsqrt", "erfinv"),
    *("pow.Tensor_Scalar", "pow.Tensor_Tensor", "pow.Scalar", "norm.Scalar", "norm.ScalarOpt_dim"),
    *("acos", "asin", "cosh", "sinh", "tan"),
)
"""What autocast widens to float32 on GPUs, and on a CPU leaves as it is (torch's "Autocast Op
Reference"). A layer norm of bfloat16 so keeps a copy of its input that is twice as large."""


@contextmanager
def fakes(device: str = "cpu") -> Iterator[None]:
    """All tensors that are made meanwhile are fake.

    Args:
        device: torch's name of the type of device that they stand for. Any but "cpu" is taken for
            one of NVIDIA's.
    """
    if device == "cpu":
        with _Fakes():
            yield
        return
    library = torch.library.Library("aten", "IMPL")  # type: ignore[no-untyped-call]
    try:
        _imitate(library)
        with _GpuFakes():
            yield
    finally:
        library._destroy()  # type: ignore[no-untyped-call]


class _Fakes(FakeTensorMode):  # type: ignore[no-untyped-call]
    """A FakeTensorMode that knows fused optimizers.

    They write in place and return nothing, so with fakes there is nothing to do. torch has no fake
    kernels for them and would run the real ones, on zeros as large as the network.
    """

    def __init__(self) -> None:
        super().__init__(allow_non_fake_inputs=True)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:  # noqa: ANN401
        """Pretend to run the operation."""
        if func in _IN_PLACE:
            return None
        return super().__torch_dispatch__(func, types, args, kwargs or {})


class _GpuFakes(_Fakes):  # type: ignore[no-untyped-call]
    """Its attention leaves its result in memory as a GPU's does."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:  # noqa: ANN401
        """Pretend to run the operation."""
        result = super().__torch_dispatch__(func, types, args, kwargs)
        if func is not _ATTENTION:
            return result
        takes_no_flash = (
            args[0].dtype == torch.float32 or (kwargs or {}).get("attn_mask") is not None
        )
        return (_by_position(result[0]), *result[1:]) if takes_no_flash else result


def _by_position(result: Tensor) -> Tensor:
    """[B, heads, N, C], in memory [B, N, heads, C], as memory-efficient attention gives it. Flash
    attention's lies as the query does, and blocks need not copy it."""
    turned = result.transpose(1, 2)
    return torch.empty_like(turned, memory_format=torch.contiguous_format).transpose(1, 2)


def _imitate(library: torch.library.Library) -> None:
    """As long as it lives, operations on a CPU's tensors keep what they would keep on a GPU."""
    kernels: dict[str, tuple[Callable[..., Any], str]] = {
        **{name: (_in_float32(name), "AutocastCPU") for name in _FLOAT32_ON_A_GPU},
        "dropout": (_dropout, "AutogradCPU"),
        "scaled_dot_product_attention": (_attention, "AutogradCPU"),
    }
    for name, (kernel, key) in kernels.items():
        library.impl(name, kernel, key)  # type: ignore[no-untyped-call]


def _in_float32(name: str) -> Callable[..., Any]:
    packet, _, overload = name.partition(".")
    operation: Callable[..., Any] = getattr(getattr(_aten, packet), overload or "default")
    keys = torch._C.DispatchKeySet(torch._C.DispatchKey.AutocastCPU)

    def run(*args: Any, **kwargs: Any) -> Any:  # noqa: ANN401 (whatever it takes)
        with torch._C._ExcludeDispatchKeyGuard(keys):
            return operation(*map(_wide, args), **kwargs)

    return run


def _wide(value: Any) -> Any:  # noqa: ANN401 (any argument of an operation)
    narrow = isinstance(value, Tensor) and value.dtype == torch.bfloat16
    return value.float() if narrow else value


def _dropout(x: Tensor, p: float, train: bool) -> Tensor:
    """Keeps a byte per element, where on a CPU it keeps a factor for each."""
    if not train or p in (0.0, 1.0):
        return x
    dropped: Tensor = _aten.native_dropout(x, p, train)[0]
    return dropped


def _attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    **options: Any,  # noqa: ANN401 (scale, enable_gqa: change no size)
) -> Tensor:
    """Flash and memory-efficient attention drop out without keeping anything."""
    if not torch.backends.cuda.flash_sdp_enabled():  # type: ignore[no-untyped-call]
        # a double backward asks for this one
        composite = _aten._scaled_dot_product_attention_math
        result: Tensor = composite(query, key, value, attn_mask, dropout_p, is_causal, **options)[0]
        return result
    fused: Tensor = _ATTENTION(query, key, value, 0.0, is_causal, attn_mask=attn_mask)[0]
    return fused
