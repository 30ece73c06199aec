"""The most memory that a rank has used."""

import torch

from pipeline_local.record import resident
from pipeline_local.user_input.json_text import Facts


def peak_memory_bytes(device: torch.device) -> int:
    """Returns the peak of the device's allocator, or on a CPU the process's peak resident set."""
    if device.type != "cpu":
        return int(torch.accelerator.max_memory_allocated(device))
    return resident.peak()


def peak_memory(device: torch.device) -> Facts:
    """Returns `peak_memory_bytes`, and what they are of: "tensors", which is what a plan predicts,
    or the whole "process" with Python and torch."""
    of = "process" if device.type == "cpu" else "tensors"
    return {"peak_memory_bytes": peak_memory_bytes(device), "memory_of": of}
