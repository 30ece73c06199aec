"""The Python side of the simulated GPU (simgpu.cpp): what torch looks for in `torch.simgpu`.

Torch loads it by itself, in every process that has the folder of `build.py` on its PYTHONPATH.
"""

import os
import sys
from pathlib import Path

import torch

_initialized = True


class device(torch.accelerator.device_index):  # noqa: N801 (torch's)
    """Torch also hands it a torch.device, where it reads tensors that another process has sent."""

    def __init__(self, index: int | torch.device | None) -> None:
        super().__init__(index.index if isinstance(index, torch.device) else index)


def load() -> None:
    """Make `simgpu` this process's accelerator. Called by torch, at the end of its import."""
    torch.utils.rename_privateuse1_backend("simgpu")
    torch.ops.load_library(Path(__file__).with_name("libsimgpu.so"))
    torch._register_device_module("simgpu", sys.modules[__name__])
    import simccl  # needs torch whole, and the device's name

    simccl.register()


def is_available() -> bool:
    return device_count() > 0


def device_count() -> int:
    return int(os.environ.get("SIMGPU_DEVICES", "1"))


def current_device() -> int:
    return torch.accelerator.current_device_index()


def is_initialized() -> bool:
    return True


def _is_in_bad_fork() -> bool:
    return False


def get_amp_supported_dtype() -> list[torch.dtype]:
    return [torch.bfloat16, torch.float16]


def manual_seed(seed: int) -> None:
    torch.ops.simgpu.seed(current_device(), seed)


def manual_seed_all(seed: int) -> None:
    for index in range(device_count()):
        torch.ops.simgpu.seed(index, seed)


def get_rng_state(index: int | torch.device | None = None) -> torch.Tensor:
    return torch.ops.simgpu.state(_index(index))


def set_rng_state(state: torch.Tensor, index: int | torch.device | None = None) -> None:
    torch.ops.simgpu.set_state(_index(index), state)


def _index(index: int | torch.device | None) -> int:
    index = index.index if isinstance(index, torch.device) else index
    return current_device() if index is None else index


def waits() -> int:
    """How often the host of this process has waited for a device."""
    return int(torch.ops.simgpu.waits())


def get_device_name(index: object = None) -> str:
    return "simulated GPU"
