"""GPUs that are there, hidden, or out of torch's reach."""

from types import SimpleNamespace

import pytest
import torch

from pipeline_local.doctor import accelerators
from pipeline_local.doctor.finding import examine


@pytest.mark.parametrize(
    ("driver", "cuda", "visible", "status", "says"),
    [
        (None, None, None, "PASS", "none; ranks compute on CPUs"),
        (None, "13.0", None, "PASS", "none; ranks compute on CPUs"),
        ("580.1", None, None, "WARN", "built without CUDA; install a CUDA wheel"),
        ("580.1", "13.0", "", "PASS", "hidden by CUDA_VISIBLE_DEVICES="),
        ("580.1", "13.0", None, "WARN", "sees no GPU; update the driver, or give a container"),
        ("580.1", "13.0", "7", "WARN", "sees no GPU; unset CUDA_VISIBLE_DEVICES=7, update"),
    ],
)
def test_torch_sees_none(lines, monkeypatch, driver, cuda, visible, status, says):
    monkeypatch.setattr(accelerators, "driver_version", lambda: driver)
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: False)
    monkeypatch.setattr(torch.version, "cuda", cuda)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    ((found, text),) = lines(accelerators.gpus)
    assert found == status
    assert says in text


def test_two_are_seen(monkeypatch):
    properties = SimpleNamespace(name="NVIDIA H200", total_memory=141 * 2**30)
    module = SimpleNamespace(get_device_properties=lambda _: properties)
    monkeypatch.setattr(accelerators, "driver_version", lambda: "580.1")
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: True)
    monkeypatch.setattr(torch.accelerator, "device_count", lambda: 2)
    monkeypatch.setattr(torch, "get_device_module", lambda: module)
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    first, second = examine(accelerators.gpus)
    assert str(first) == "PASS  gpus           0: NVIDIA H200, 141 GiB, driver 580.1, CUDA 13.0"
    assert second.values["memory"] == 141 * 2**30


def test_no_driver_here_or_a_version():
    version = accelerators.driver_version()
    assert version is None or version[0].isdigit()
