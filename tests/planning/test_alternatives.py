"""What other methods would need, as far as it is known exactly."""

import pytest

from pipeline_local import configfile
from pipeline_local.data.images.datasets import describe
from pipeline_local.placement.draw import draw as draw_blueprint
from pipeline_local.placement.placement import Placement
from pipeline_local.planning.alternatives import alternatives


def of(devices, batch_size=32):
    config = configfile.parse(
        {
            "model": {"name": "mlp", "hidden": 32, "depth": 6},
            "data": {"name": "digits", "batch_size": batch_size},
            "modules": {"count": 3},
            "train": {"steps": 40},
        }
    )
    blueprint = draw_blueprint(config, describe(config.data))
    return {p.name: p for p in alternatives(Placement.of(blueprint, devices))}


def test_alternatives():
    found = of(2)
    assert [*found] == ["BP, 1 device", "1F1B, p=2, m=2", "1F1B, p=2, m=8", "data parallel, p=2"]
    assert found["1F1B, p=2, m=2"].bubble == pytest.approx(1 / 3)
    assert found["1F1B, p=2, m=8"].bubble == pytest.approx(1 / 9)
    assert found["1F1B, p=2, m=2"].peak < found["BP, 1 device"].peak
    num_parameters = 64 * 32 + 32 + 5 * (32 * 32 + 32) + 32 * 10 + 10
    assert found["data parallel, p=2"].traffic == 4 * num_parameters
    assert [*of(1)] == ["BP, 1 device"]
    assert all(other.seconds is None for other in found.values()), "there is no profile"


def test_a_batch_has_only_so_many_parts():
    assert [*of(2, batch_size=4)] == ["BP, 1 device", "1F1B, p=2, m=2", "data parallel, p=2"]
    assert [*of(3, batch_size=2)] == ["BP, 1 device"]
