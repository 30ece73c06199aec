"""What other methods would need, as far as it is known exactly."""

import pytest

from pipeline_local import configfile
from pipeline_local.data.datasets import describe
from pipeline_local.pipeline.blueprint import Blueprint
from pipeline_local.planning.alternatives import alternatives


def of(devices):
    config = configfile.parse(
        {
            "model": {"name": "mlp", "hidden": 32, "depth": 6},
            "data": {"name": "digits", "batch_size": 32},
            "modules": {"count": 3},
            "train": {"steps": 40},
        }
    )
    return {p.name: p for p in alternatives(Blueprint.draw(config, describe(config.data)), devices)}


def test_alternatives():
    found = of(2)
    assert [*found] == ["BP, 1 device", "1F1B, p=2, m=2", "1F1B, p=2, m=8", "data parallel, p=2"]
    assert found["1F1B, p=2, m=2"].bubble == pytest.approx(1 / 3)
    assert found["1F1B, p=2, m=8"].bubble == pytest.approx(1 / 9)
    assert found["1F1B, p=2, m=2"].peak < found["BP, 1 device"].peak
    num_parameters = 64 * 32 + 32 + 5 * (32 * 32 + 32) + 32 * 10 + 10
    assert found["data parallel, p=2"].traffic == 4 * num_parameters
    assert [*of(1)] == ["BP, 1 device"]
