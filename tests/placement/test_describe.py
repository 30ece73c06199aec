"""A blueprint in words."""

import pytest

from pipeline_local.configfile import configfile
from pipeline_local.data.images.datasets import describe as describe_data
from pipeline_local.placement.describe import describe, doubts, explain
from pipeline_local.placement.draw import draw as draw_blueprint
from pipeline_local.placement.placement import Placement


def draw(**sections):
    return draw_blueprint(*configured(**sections))


def configured(**sections):
    tree = {
        "model": {"name": "resnet20", "width": 4},
        "data": {"name": "digits", "batch_size": 16},
        "modules": {"count": 4},
        "train": {"steps": 3},
        **sections,
    }
    config = configfile.parse(tree)
    return config, describe_data(config.data)


def test_what_each_module_is_and_where_it_runs():
    rows = describe(Placement.of(draw(), 2))
    assert [row.stage for row in rows] == [0, 0, 1, 1]
    assert rows[0].blocks == "stem .. layer1.0"
    assert [row.head for row in rows] == ["auglocal"] * 3 + ["classifier"]


def test_what_is_trained_in_one_line():
    line = explain(draw())
    assert line.startswith("resnet20: 0.02 M parameters in 10 blocks, 4 modules; images 1x8x8")
    assert line.endswith("10 classes")


def test_costs_that_are_not_measured_are_named():
    modules, stages = {"count": 4, "cuts": "auto"}, {"cuts": "auto"}
    for section, key in (({"modules": modules}, "modules"), ({"parallel": stages}, "parallel")):
        config, info = configured(**section)
        (line,) = doubts(config, draw_blueprint(config, info))
        assert line.startswith(f"{key}.cuts=auto: costs are FLOPs")
        assert "modules.profile" in line


@pytest.mark.parametrize(
    ("head", "batch", "warned"),
    [
        ({"fraction": 0.25}, 64, True),
        ({"fraction": 0.5}, 64, False),
        ({"fraction": 1.0}, 16, False),
        ({"fraction": 0.25, "name": "linear"}, 64, False),
        ({"fraction": 0.255}, 64, True),  # as the module rounds
    ],
)
def test_batch_norms_of_heads_on_few_samples(head, batch, warned):
    config, info = configured(head=head, data={"name": "digits", "batch_size": batch})
    lines = [*doubts(config, draw_blueprint(config, info))]
    fraction = f"head.fraction={head['fraction']}"
    assert [line.partition(":")[0] for line in lines] == [fraction] * warned
    assert all("16 samples at once" in line for line in lines)


@pytest.mark.parametrize(("count", "weight"), [(1, 0.1), (1, 0.0), (2, 0.1)])
def test_a_single_module_has_no_neighbour(count, weight):
    config, info = configured(modules={"count": count}, reconcile={"weight": weight})
    lines = [*doubts(config, draw_blueprint(config, info))]
    assert len(lines) == (count == 1 and weight > 0)
    assert all(line.startswith("reconcile.weight=0.1: a single module has no") for line in lines)
