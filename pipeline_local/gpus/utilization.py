"""What part of its peak a GPU computes at: the model's FLOPs utilization (MFU).

As PaLM's authors define it (Chowdhery et al., 2022, appendix B), it counts the operations that
training needs, and nothing that is computed again.
"""

import re
from collections.abc import Callable

import torch

PEAKS = {
    r"V100-SXM2-(16|32)GB": 125e12,
    r"V100-PCIE-(16|32)GB": 112e12,
    r"T4": 65e12,
    r"A30": 165e12,
    r"A40": 149.7e12,
    r"A10": 125e12,
    r"A[18]00-SXM4-(40|80)GB|A[18]00-PCIE-40GB|A[18]00 80GB PCIe": 312e12,
    r"L4": 121e12,
    r"L40": 181e12,
    r"L40S": 362e12,
    r"H100 PCIe": 756e12,
    r"H[12]00 NVL": 835.5e12,
    r"H100 80GB HBM3|H800|H200|GH200 (120GB|480GB|144G HBM3e)": 989.4e12,
    r"B200": 2250e12,
    r"GB200": 2500e12,
}
"""Dense operations per second of 16-bit matrix products with float32 sums, of NVIDIA's data sheets,
by the whole name of a device without its maker's.

A part of a GPU, by MIG or of a virtual machine, has a longer name ("MIG 1g.5gb", "A100-10C") and no
peak of its own. The H800's data sheet on PCIe or as NVL is not at hand, so these have none.
"""
WITHOUT_BFLOAT16 = ("V100", "T4")


def peak(name: str, precision: str) -> float | None:
    """Returns the operations per second that a GPU has at most; None where that is not known.

    Args:
        name: of the device, as its driver gives it.
        precision: of the run. In float32 and float64 a utilization says little: what counts there
            is whether TF32 is allowed.
    """
    if precision not in ("bfloat16", "float16"):
        return None
    bare = name.removeprefix("NVIDIA ").removeprefix("Tesla ")
    if precision == "bfloat16" and bare.startswith(WITHOUT_BFLOAT16):
        return None
    return next((most for names, most in PEAKS.items() if re.fullmatch(names, bare)), None)


class Utilization:
    """The MFU of one rank's GPU.

    Args:
        device: of the rank.
        name: of the device, as its driver gives it.
        precision: of the run.
        operations: gives the operations of training on one sample, of this rank; it is called where
            the peak is known.
    """

    def __init__(
        self, device: torch.device, name: str, precision: str, operations: Callable[[], float]
    ) -> None:
        most = peak(name, precision) if device.type == "cuda" else None
        self._share = operations() / most if most else None
        """Of the GPU's peak, at one sample per second."""

    def facts(self, samples_per_second: float) -> dict[str, float]:
        """Returns `mfu`, from 0 to 1; nothing where the GPU's peak is not known."""
        if self._share is None:
            return {}
        return {"mfu": round(self._share * samples_per_second, 4)}
