"""What part of its peak a GPU computes at."""

import pytest
import torch

from pipeline_local.gpus.utilization import Utilization, peak

CUDA = torch.device("cuda", 0)


@pytest.mark.parametrize(
    ("name", "tera"),
    [
        ("NVIDIA A100-SXM4-80GB", 312),
        ("NVIDIA A10", 125),
        ("NVIDIA A10G", None),
        ("NVIDIA H100 80GB HBM3", 989.4),
        ("NVIDIA H100 PCIe", 756),
        ("NVIDIA H200", 989.4),
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
    assert peak("NVIDIA H200", "float32") is None


def test_utilization():
    """10 % of an H100's peak at 1000 samples of 98.94 GFLOP a second."""
    used = Utilization(CUDA, "NVIDIA H100 80GB HBM3", "bfloat16", lambda: 98.94e9)
    assert used.facts(1000.0) == {"mfu": 0.1}
    assert Utilization(CUDA, "an own make", "bfloat16", _never).facts(1.0) == {}
    assert Utilization(torch.device("cpu"), "NVIDIA H200", "bfloat16", _never).facts(1.0) == {}


def _never():
    raise AssertionError("operations are counted for nothing")
