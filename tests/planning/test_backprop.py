"""Blocks under plain backpropagation, on fake tensors."""

from dataclasses import replace

from pipeline_local.blueprint.device import Device
from pipeline_local.configfile import configfile
from pipeline_local.data.images.datasets import describe
from pipeline_local.placement.draw import draw as draw_blueprint
from pipeline_local.planning.backprop import pass_through


def draw():
    tree = {
        "model": {"name": "mlp", "hidden": 64},
        "data": {"name": "synthetic", "image_size": 32, "batch_size": 16},
        "modules": {"count": 1},
        "train": {"steps": 100},
    }
    config = configfile.parse(tree)
    return draw_blueprint(config, describe(config.data), Device())


def test_some_blocks():
    blueprint = draw()
    whole = pass_through(blueprint, range(len(blueprint.backbone.blocks)), 16)
    part = pass_through(blueprint, range(1, 2), 16)
    assert part.peak < whole.peak
    assert part.output == 16 * 64 * 4
    assert pass_through(blueprint, range(1, 2), 4).activations == part.activations / 4


def test_libraries_keep_something_of_their_own():
    blueprint = draw()
    more = replace(blueprint, device=Device(workspaces=999))
    plain, more = (pass_through(b, range(1, 2), 16) for b in (blueprint, more))
    assert more.peak == plain.peak + 999
