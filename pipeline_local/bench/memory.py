"""Peak memory of a piece of work: CUDA's allocator, or on a CPU a count of live storages."""

from collections.abc import Callable

import torch

from pipeline_local.planning.storages import LiveStorages as LiveStorages  # public here too


def peak_bytes(work: Callable[[], None], device: torch.device) -> int:
    """Most bytes that `work` holds at once, beyond what was there before it."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        before: int = torch.cuda.memory_allocated(device)
        torch.cuda.reset_peak_memory_stats(device)
        work()
        torch.cuda.synchronize(device)
        peak: int = torch.cuda.max_memory_allocated(device)
        return peak - before
    storages = LiveStorages()
    with storages:
        work()
    return storages.peak
