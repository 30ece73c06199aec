"""The check of GPUs: what there is, and what torch sees of it."""

import os
from collections.abc import Iterator

import torch

from pipeline_local.doctor.finding import Finding, passed, warned
from pipeline_local.gpus import nvml


def gpus() -> Iterator[Finding]:
    """GPUs with name, memory and driver. No memory is taken on them."""
    driver = driver_version()
    if torch.accelerator.is_available():
        for number in range(torch.accelerator.device_count()):
            yield _gpu(number, driver)
        return
    hidden = os.environ.get("CUDA_VISIBLE_DEVICES")
    if driver is None:
        yield passed("none; ranks compute on CPUs")
    elif torch.version.cuda is None:
        found = f"driver {driver}, but torch {torch.__version__} is built without CUDA"
        yield warned(found, "install a CUDA wheel of pytorch.org to use the GPUs", driver=driver)
    elif hidden in ("", "-1"):
        yield passed(f"driver {driver}; hidden by CUDA_VISIBLE_DEVICES={hidden}", driver=driver)
    else:
        found = f"driver {driver}, but torch for CUDA {torch.version.cuda} sees no GPU"
        shown = "" if hidden is None else f"unset CUDA_VISIBLE_DEVICES={hidden}, "
        remedy = f"{shown}update the driver, or give a container its GPUs (docker: --gpus all)"
        yield warned(found, remedy, driver=driver)


def _gpu(number: int, driver: str | None) -> Finding:
    module = torch.get_device_module()
    properties = module.get_device_properties(number)
    memory = int(properties.total_memory)
    found = f"{number}: {properties.name}, {memory / 2**30:.0f} GiB"
    if driver is not None:
        found += f", driver {driver}, CUDA {torch.version.cuda}"
    return passed(found, gpu=properties.name, memory=memory, driver=driver)


def driver_version() -> str | None:
    """Return the version of NVIDIA's driver; None where there is none."""
    try:
        with nvml.opened() as module:
            return str(module.nvmlSystemGetDriverVersion())
    except Exception:  # no library, no driver, or one that does not answer
        return None
