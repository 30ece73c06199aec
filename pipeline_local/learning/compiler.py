"""Whether torch.compile works on this host: it needs compilers and a folder to write to."""

import os

import torch
from torch import Tensor

from pipeline_local.errors import UserError

_CACHE = "TORCHINDUCTOR_CACHE_DIR"


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
