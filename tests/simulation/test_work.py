"""The work of stages, as a profile says it, and of stages that there are not enough of."""

import pytest

from pipeline_local.data.datasets import describe
from pipeline_local.placement.draw import draw
from pipeline_local.simulation.work import ModuleWork, StageWork, stage_works, stretched
from tests.simulation.profiled import profiled

STAGE = StageWork(
    modules=(ModuleWork(1.0, 0.0, 2.0),),
    messages=8.0,
    forward=1.0,
    backward=2.0,
    update=0.0,
    activations=8.0,
    gradients=16.0,
)


def test_more_stages_than_there_are_get_the_mean_work():
    other = StageWork((ModuleWork(3.0, 2.0, 4.0),), 2.0, 3.0, 4.0, 2.0, 4.0, 0.0)
    many = stretched([STAGE, other], 64)
    assert len(many) == 64
    assert many[0].modules == (ModuleWork(2.0, 1.0, 3.0),)
    assert (many[5].forward, many[5].backward, many[5].update) == (2.0, 3.0, 1.0)
    assert many[5].messages == many[5].activations == 8.0, "the largest message"


@pytest.fixture
def blueprint(tmp_path):
    config = profiled(tmp_path)
    return draw(config, describe(config.data))


def test_work_is_what_the_profile_says(blueprint):
    one, two = stage_works(blueprint, 2, samples=16)
    blocks = len(blueprint.backbone.blocks)
    assert one.forward + two.forward == pytest.approx(blocks * 0.01), "of one microbatch"
    assert one.backward + two.backward == pytest.approx(blocks * 0.02)
    assert one.update + two.update == pytest.approx(blocks * 0.001)
    assert one.activations == one.messages == 16 * 8 * 4, "samples, units, bytes"
    assert two.activations == two.messages == 0
    assert one.modules[0].added == 0, "the first module compares nothing"
    assert two.modules[0].added == pytest.approx(0.03 * len(blueprint.blocks(2)))
    half = stage_works(blueprint, 2, samples=8)[0]
    assert half.forward == pytest.approx(one.forward / 2)
    assert half.update == one.update, "once per step, however small the microbatches"


def test_replicas_sum_whatever_learns(blueprint):
    """Backpropagation the network, its classifier included; local learning its heads, too."""
    stages = stage_works(blueprint, 2, samples=16)
    parts = [block.module for block in blueprint.backbone.blocks]
    parts.append(blueprint.backbone.classifier.module)
    network = 4 * sum(p.numel() for part in parts for p in part.parameters())
    heads = 4 * sum(p.numel() for k in range(3) for p in blueprint.meta_head(k).parameters())
    assert sum(stage.gradients for stage in stages) == network
    summed = sum(module.gradients for stage in stages for module in stage.modules)
    assert summed == network + heads > network
