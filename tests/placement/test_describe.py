"""A blueprint in words."""

from pipeline_local import configfile
from pipeline_local.data.images.datasets import describe as describe_data
from pipeline_local.placement.describe import describe, explain
from pipeline_local.placement.draw import draw as draw_blueprint
from pipeline_local.placement.placement import Placement


def draw():
    tree = {
        "model": {"name": "resnet20", "width": 4},
        "data": {"name": "digits", "batch_size": 16},
        "modules": {"count": 4},
        "train": {"steps": 3},
    }
    config = configfile.parse(tree)
    return draw_blueprint(config, describe_data(config.data))


def test_what_each_module_is_and_where_it_runs():
    rows = describe(Placement.of(draw(), 2))
    assert [row.stage for row in rows] == [0, 0, 1, 1]
    assert rows[0].blocks == "stem .. layer1.0"
    assert [row.head for row in rows] == ["auglocal"] * 3 + ["classifier"]


def test_what_is_trained_in_one_line():
    line = explain(draw())
    assert line.startswith("resnet20: 0.02 M parameters in 10 blocks, 4 modules; images 1x8x8")
    assert line.endswith("10 classes")
