"""NVML, the library of NVIDIA's driver: opened for a time, and asked about torch's devices."""

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

import torch

Handle = Any
"""What NVML calls a device by."""


class NoAnswerError(Exception):
    """NVML cannot be asked, or does not answer; the message says why."""


@contextmanager
def opened() -> Iterator[Any]:
    """The module `pynvml`, initialised for the time of the context.

    Raises:
        NoAnswerError: there is no such library or driver, or what is asked inside has no answer.
    """
    try:
        import pynvml
    except ImportError as error:
        raise NoAnswerError(str(error)) from error
    try:
        pynvml.nvmlInit()
        try:
            yield pynvml
        finally:
            pynvml.nvmlShutdown()
    except pynvml.NVMLError as error:
        raise NoAnswerError(str(error)) from error


def knows(device: torch.device) -> bool:
    """Whether a device is one of NVIDIA's; torch calls those of AMD `cuda`, too."""
    return device.type == "cuda" and torch.version.cuda is not None


def handle_of(nvml: Any, device: torch.device) -> Handle:  # noqa: ANN401 (pynvml has no types)
    """Returns the handle of a device of torch, or of a part of one (MIG).

    NVML numbers all devices of the host, torch those that CUDA_VISIBLE_DEVICES leaves it. So the
    device is found by its UUID, or else by its place on the PCI bus.
    """
    found: Any = torch.cuda.get_device_properties(device)
    for kind in ("GPU", "MIG"):
        with suppress(nvml.NVMLError):
            return nvml.nvmlDeviceGetHandleByUUID(f"{kind}-{found.uuid}")
    place = f"{found.pci_domain_id:08x}:{found.pci_bus_id:02x}:{found.pci_device_id:02x}.0"
    return nvml.nvmlDeviceGetHandleByPciBusId(place)


def whole(nvml: Any, handle: Handle) -> Handle:  # noqa: ANN401
    """Returns the handle of the whole GPU that a part belongs to; of a whole one its own."""
    with suppress(nvml.NVMLError):
        return nvml.nvmlDeviceGetDeviceHandleFromMigDeviceHandle(handle)
    return handle
