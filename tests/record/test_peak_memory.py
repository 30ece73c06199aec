"""What a rank says of its memory."""

import torch

from pipeline_local.record import resident
from pipeline_local.record.peak_memory import peak_memory, peak_memory_bytes

CPU = torch.device("cpu")


def test_on_a_cpu_it_is_that_of_the_process(monkeypatch):
    """With Python and torch."""
    assert peak_memory_bytes(CPU) > 2**20
    monkeypatch.setattr(resident, "peak", lambda: 7)
    assert peak_memory(CPU) == {"peak_memory_bytes": 7, "memory_of": "process"}
