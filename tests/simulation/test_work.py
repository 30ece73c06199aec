"""Work of stages that there are not enough of."""

from pipeline_local.simulation.work import ModuleWork, StageWork, stretched

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
