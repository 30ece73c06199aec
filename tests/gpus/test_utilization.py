"""What part of its peak a GPU computes at."""

import pytest
import torch

from pipeline_local.gpus.utilization import Utilization, peak

CUDA = torch.device("cuda", 0)


@pytest.mark.parametrize(
    ("name", "tera"),
    [
        ("NVIDIA A100-SXM4-80GB", 312),
        ("A100-SXM4-40GB", 312),
        ("NVIDIA A100-PCIE-40GB", 312),
        ("NVIDIA A100 80GB PCIe", 312),
        ("NVIDIA A800-SXM4-80GB", 312),
        ("NVIDIA A10", 125),
        ("NVIDIA A10G", None),
        ("NVIDIA H100 80GB HBM3", 989.4),
        ("NVIDIA H100 PCIe", 756),
        ("NVIDIA H100 NVL", 835.5),
        ("NVIDIA H800", 989.4),
        ("NVIDIA H800 PCIe", None),
        ("NVIDIA H200", 989.4),
        ("NVIDIA H200 NVL", 835.5),
        ("NVIDIA GH200 480GB", 989.4),
        ("NVIDIA L4", 121),
        ("NVIDIA L40S", 362),
        ("NVIDIA B200", 2250),
        ("NVIDIA GB200", 2500),
        ("Tesla V100-SXM2-32GB", None),
        ("NVIDIA GeForce RTX 5090", None),
        ("AMD Instinct MI300X", None),
    ],
)
def test_peaks_by_the_names_that_drivers_give(name, tera):
    assert peak(name, "bfloat16") == (tera and tera * 1e12)


def test_a_peak_is_of_a_precision():
    assert peak("Tesla V100-SXM2-32GB", "float16") == 125e12
    assert peak("Tesla V100-PCIE-16GB", "float16") == 112e12
    assert peak("Tesla V100-PCIE-16GB", "bfloat16") is None
    assert peak("Tesla T4", "float16") == 65e12
    assert peak("Tesla T4", "bfloat16") is None
    assert peak("NVIDIA H200", "float32") is None


@pytest.mark.parametrize(
    "name",
    [
        *("NVIDIA A100-SXM4-40GB MIG 1g.5gb", "NVIDIA H100 80GB HBM3 MIG 1g.10gb"),
        *("NVIDIA H200 MIG 3g.71gb", "NVIDIA GH200 480GB MIG 1g.12gb", "NVIDIA B200 MIG 1g.23gb"),
        *("GRID A100-10C", "NVIDIA A100-40C", "GRID A100-2-10C", "GRID V100-8Q", "GRID T4-16Q"),
        *("NVIDIA A10-24Q", "NVIDIA A40-48Q", "NVIDIA L40S-48Q", "NVIDIA L4-24C", "GRID T4"),
    ],
)
def test_a_part_of_a_gpu_has_no_peak(name):
    assert peak(name, "float16") is None


def test_utilization():
    """10 % of an H100's peak at 1000 samples of 98.94 GFLOP a second."""
    used = Utilization(CUDA, "NVIDIA H100 80GB HBM3", "bfloat16", lambda: 98.94e9)
    assert used.facts(1000.0) == {"mfu": 0.1}
    assert Utilization(CUDA, "an own make", "bfloat16", _never).facts(1.0) == {}
    assert Utilization(torch.device("cpu"), "NVIDIA H200", "bfloat16", _never).facts(1.0) == {}


def _never():
    raise AssertionError("operations are counted for nothing")
