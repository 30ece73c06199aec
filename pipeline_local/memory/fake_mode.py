"""Fake tensors: operations on them cost no memory or compute, but keep what a real device would.

They are on the CPU, whatever device they stand for: without a GPU, torch runs no backward pass of
fake GPU tensors. Where NVIDIA's kernels are known to keep other tensors than a CPU's, these are
imitated: autocast, attention and dropout.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from threading import RLock
from typing import Any

import torch
from torch import Tensor, library
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.backends import cuda

_aten = torch.ops.aten
_LOCK = RLock()
"""torch has one kernel per operation: no two threads may imitate a GPU's at once."""
_IN_PLACE = (_aten._fused_sgd_.default, _aten._fused_adamw_.default)
_NARROW = (torch.bfloat16, torch.float16)
_VALUE = _aten._local_scalar_dense.default
_ATTENTION = _aten._scaled_dot_product_flash_attention_for_cpu.default

_FLOAT32_ON_A_GPU = (
    *("layer_norm", "group_norm", "native_layer_norm", "rms_norm", "cosine_similarity"),
    *("softmax.int", "log_softmax.int", "logsumexp", "softplus", "cumsum", "cumprod"),
    "linalg_vector_norm",
    *("exp", "expm1", "log", "log2", "log10", "log1p", "reciprocal", "rsqrt", "erfinv"),
    *("pow.Tensor_Scalar", "pow.Tensor_Tensor", "pow.Scalar", "norm.Scalar", "norm.ScalarOpt_dim"),
    *("acos", "asin", "cosh", "sinh", "tan"),
)
"""Operations that autocast runs in float32 on GPUs but not on a CPU (torch's "Autocast Op
Reference"). So a layer norm of bfloat16 keeps a copy of its input that is twice as large."""


@contextmanager
def fake_mode(device: str = "cpu") -> Iterator[None]:
    """Makes all tensors fake that are created in the context.

    Args:
        device: torch's name of the type of device that they stand for. Any but "cpu" is treated as
            an NVIDIA GPU.
    """
    if device == "cpu":
        with _Fakes():
            yield
        return
    with _LOCK:
        kernels = library.Library("aten", "IMPL")  # type: ignore[no-untyped-call]
        try:
            _imitate(kernels)
            with _GpuFakes():
                yield
        finally:
            kernels._destroy()  # type: ignore[no-untyped-call]


class _Fakes(FakeTensorMode):  # type: ignore[no-untyped-call]
    """A FakeTensorMode that supports fused optimizers.

    They write in place and return nothing, so with fake tensors there is nothing to do. torch has
    no fake kernels for them and would run the real ones, on zeros as large as the network.
    """

    answers = False
    """Fake tensors have made-up values."""

    def __init__(self) -> None:
        super().__init__(allow_non_fake_inputs=True)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:  # noqa: ANN401
        """Pretend to run the operation."""
        if func in _IN_PLACE:
            return None
        if func is _VALUE and self.answers and isinstance(args[0], FakeTensor):
            return 0.5 if args[0].is_floating_point() else 1
        return super().__torch_dispatch__(func, types, args, kwargs or {})


@contextmanager
def made_up_values() -> Iterator[None]:
    """Who asks for the value of a fake tensor gets one half (1 of an integer) meanwhile.

    It is for optimizers that read how many steps they have done, and divide by what follows from
    it. Networks may not ask, as what they do could depend on it.
    """
    _Fakes.answers = True
    try:
        yield
    finally:
        _Fakes.answers = False


class _GpuFakes(_Fakes):  # type: ignore[no-untyped-call]
    """A fake mode whose attention returns a result with the strides that it has on a GPU."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:  # noqa: ANN401
        """Pretend to run the operation."""
        result = super().__torch_dispatch__(func, types, args, kwargs)
        if func is _ATTENTION and not _takes_flash(args[0], (kwargs or {}).get("attn_mask")):
            return _by_position(result[0]), *result[1:]
        return result


def _takes_flash(query: Tensor, mask: Tensor | None) -> bool:
    """Whether a GPU uses flash attention for it, rather than memory-efficient attention."""
    allowed: bool = cuda.flash_sdp_enabled()  # type: ignore[no-untyped-call]
    return allowed and query.dtype in _NARROW and mask is None


def _by_position(result: Tensor) -> Tensor:
    """Returns [B, heads, N, C], stored as [B, N, heads, C], as memory-efficient attention does.
    Flash attention's result has the query's strides, and blocks need not copy it."""
    stored = result.transpose(1, 2)
    return torch.empty_like(stored, memory_format=torch.contiguous_format).transpose(1, 2)


def _imitate(kernels: library.Library) -> None:
    """Makes operations on fake tensors keep what they would keep on a GPU, while `kernels` lives.

    Those on real tensors, such as another thread's, are not changed.
    """
    imitations: dict[str, tuple[Callable[..., Any], str]] = {
        **{name: (_in_float32(name), "AutocastCPU") for name in _FLOAT32_ON_A_GPU},
        "dropout": (_dropout, "AutogradCPU"),
        "scaled_dot_product_attention": (_attention, "AutogradCPU"),
    }
    for name, (kernel, key) in imitations.items():
        kernels.impl(name, kernel, key)  # type: ignore[no-untyped-call]


def _in_float32(name: str) -> Callable[..., Any]:
    packet, _, overload = name.partition(".")
    operation: Callable[..., Any] = getattr(getattr(_aten, packet), overload or "default")
    keys = torch._C.DispatchKeySet(torch._C.DispatchKey.AutocastCPU)

    def run(*args: Any, **kwargs: Any) -> Any:  # noqa: ANN401 (whatever it takes)
        with torch._C._ExcludeDispatchKeyGuard(keys):
            return operation(*map(_wide, args), **kwargs)

    return run


def _wide(value: Any) -> Any:  # noqa: ANN401 (any argument of an operation)
    narrow = isinstance(value, FakeTensor) and value.dtype in _NARROW
    return value.float() if narrow else value


def _default_kernel(operation: Any, *args: Any, **options: Any) -> Tensor:  # noqa: ANN401
    """Runs the operation as torch composes it on every device."""
    composite = torch._C.DispatchKey.CompositeImplicitAutograd
    result: Tensor = operation._op_dk(composite, *args, **options)
    return result


def _dropout(x: Tensor, p: float, train: bool) -> Tensor:
    """Dropout that keeps a byte per element, where a CPU's keeps a factor for each."""
    if not isinstance(x, FakeTensor) or not train or p in (0.0, 1.0):
        return _default_kernel(_aten.dropout.default, x, p, train)
    dropped: Tensor = _aten.native_dropout(x, p, train)[0]
    return dropped


def _attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Tensor:
    """Attention as a GPU's, whose fused kernels keep nothing for dropout."""
    if _is_fused(query, value, attn_mask, enable_gqa):
        fused: Tensor = _ATTENTION(query, key, value, 0.0, is_causal, attn_mask=attn_mask)[0]
        return fused
    options: dict[str, Any] = {"scale": scale, "enable_gqa": enable_gqa}
    if not isinstance(query, FakeTensor):
        whole = _aten.scaled_dot_product_attention.default
        return _default_kernel(whole, query, key, value, attn_mask, dropout_p, is_causal, **options)
    composite = _aten._scaled_dot_product_attention_math
    result: Tensor = composite(query, key, value, attn_mask, dropout_p, is_causal, **options)[0]
    return result


def _is_fused(query: Tensor, value: Tensor, mask: Tensor | None, grouped: bool) -> bool:
    """Whether a GPU has a fused kernel for it, which keeps no map [N, N]."""
    if not (
        isinstance(query, FakeTensor) and query.dim() == 4 and query.shape[-1] == value.shape[-1]
    ):
        return False
    if mask is not None and mask.requires_grad:  # a GPU has one, but fake CPU tensors do not
        return False
    efficient: bool = cuda.mem_efficient_sdp_enabled()  # type: ignore[no-untyped-call]
    efficient &= query.dtype != torch.float64 and not grouped
    return efficient or _takes_flash(query, mask)
