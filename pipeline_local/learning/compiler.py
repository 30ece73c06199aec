"""torch.compile: what of a module is compiled, and whether it works on this host.

It needs compilers and a folder to write to.
"""

import os
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from contextvars import ContextVar
from functools import cache, partial
from types import FunctionType
from typing import Any

import torch
from torch import Tensor, nn

from pipeline_local.errors import UserError
from pipeline_local.learning.tasks.next_token import HasHidden

_CACHE = "TORCHINDUCTOR_CACHE_DIR"

_COMPILES = threading.Event()
"""Set once this process has compiled a part."""

_FOUND: ContextVar[int | None] = ContextVar("found", default=None)
"""The limit of graphs that was raised in the innermost `graph_limit_kept`; None: it was not."""


def check_cache_folder() -> None:
    """Makes the folder that the environment names for compiled code, as torch does while it loads.

    Raises:
        UserError: it cannot be made.
    """
    if (folder := os.environ.get(_CACHE)) is None:
        return
    try:
        os.makedirs(os.path.abspath(folder), exist_ok=True)
    except OSError as error:
        raise UserError(f"{_CACHE}: {error}; name a folder that can be written") from None


def try_compiler(device: torch.device) -> None:
    """Compiles and runs a function of one operation.

    Where an earlier run has left it in torch's cache, nothing is compiled and little is shown.

    Raises:
        UserError: torch.compile does not work here.
    """
    compiled = torch.compile(_probe, dynamic=False)
    try:
        compiled(torch.zeros(2, device=device))
    except Exception as error:  # the function is beyond doubt
        raise _trouble(error) from error


def _probe(x: Tensor) -> Tensor:
    return x.sin() + 1


def compiler_failure(error: Exception) -> UserError | None:
    """Returns what the user must fix where a compiler has failed for a reason of this host.

    A full disk may show only while the network is compiled. None for any other error.
    """
    is_torchs = any(kind.__module__ == "torch._inductor.exc" for kind in type(error).__mro__)
    if is_torchs and any(sign in str(error) for sign in _SIGNS):
        return _trouble(error)
    return None


_SIGNS = (" compile error", "InvalidCxxCompiler", "TritonMissing", "find C compiler", "[Errno ")


def _trouble(error: Exception) -> UserError:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    told = [line for line in lines if "error:" in line] or lines or [type(error).__name__]
    return UserError(
        f"compile=true: torch.compile does not work here ({told[0]}); it needs a C++ compiler (CXX"
        f" may name it), Triton on GPUs, and a folder with free space ({_CACHE} or TMPDIR"
        f" may name it); compile=false does without"
    )


def compile_part(part: nn.Module, **options: str) -> None:
    """Compile a block or a head with the options of `torch.compile`, for static shapes.

    All blocks of a class share one cache of graphs: one per shape, for training and for evaluation.
    At eight graphs torch stops and goes on uncompiled. It may do so between the two runs of a
    recomputed block, which then save different tensors. So its limit is raised.
    """
    _raise_graph_limit()
    compiled = torch.compile(_entry(str(type(part))), dynamic=False, **options)  # type: ignore[call-overload]
    part._compiled_call_impl = partial(compiled, part)


def _raise_graph_limit() -> None:
    """Lets torch compile more than eight graphs of one function; beyond, it goes on uncompiled.

    Newer versions of torch have a limit for each thread, and this is for the calling one.
    """
    from torch._dynamo import config  # takes a second to import

    _COMPILES.set()
    if _FOUND.get() is None:
        _FOUND.set(config.recompile_limit)
    config.recompile_limit = config.accumulated_recompile_limit


@contextmanager
def graph_limit_kept() -> Iterator[None]:
    """A context after which torch's limit of graphs is as before, whatever was compiled inside.

    Where parts were compiled earlier, as those of a predictor, it is raised for them again.
    """
    before = _FOUND.set(None)
    try:
        if _COMPILES.is_set():
            _raise_graph_limit()
        yield
    finally:
        if (found := _FOUND.get()) is not None:
            from torch._dynamo import config

            config.recompile_limit = found
        _FOUND.reset(before)


def compile_head(head: nn.Module) -> None:
    """Compile what is called of a head: not itself where logits are not formed."""
    for network in _called(head):
        compile_part(network)


def _called(head: nn.Module) -> list[nn.Module]:
    if not isinstance(head, HasHidden):
        return [head]
    found = []
    for child in head.children():
        found += list(child) if isinstance(child, nn.Sequential) else _called(child)
    return found


@cache
def _entry(kind: str) -> Callable[..., Any]:
    """A function that calls a part of this class, with code (and so a cache of graphs) of its own.

    Up to torch 2.13, `Module.compile` passes over a part whose forward is torch.nn's own.
    """

    def call(part: Any, x: Tensor) -> Any:  # noqa: ANN401 (what the part gives)
        return part._call_impl(x)

    return FunctionType(call.__code__.replace(), globals())


def eagerly(module: nn.Module) -> AbstractContextManager[object]:
    """A context in which the compiled parts of a module run as they were written."""
    compiled = any(layer._compiled_call_impl is not None for layer in module.modules())
    context: AbstractContextManager[object] = nullcontext()
    return torch.compiler.set_stance("force_eager") if compiled else context
