"""A stage's edges: feedback never closes a cycle of waits."""

import pytest
import torch

from pipeline_local import configfile
from pipeline_local.data.datasets import describe
from pipeline_local.learning.step import Step
from pipeline_local.pipeline.blueprint import Blueprint
from pipeline_local.pipeline.edges import connect, lay
from pipeline_local.pipeline.place import joined
from pipeline_local.pipeline.source import Source
from pipeline_local.pipeline.stage import Nowhere
from pipeline_local.record.whereabouts import Whereabouts


def draw(direction, every=1, microbatches=1, image_size=8):
    tree = {
        "model": {"name": "resnet20", "width": 2},
        "modules": {"count": 3},
        "head": {"name": "linear"},
        "data": {"name": "synthetic", "batch_size": 12, "image_size": image_size},
        "train": {"steps": 12, "microbatches": microbatches, "evaluate_every": 99, "log_every": 4},
        "reconcile": {"weight": 1.0, "direction": direction, "every": every},
    }
    config = configfile.parse(tree)
    return Blueprint.draw(config, describe(config.data))


def talk(place, blueprint):
    """Follow the schedule as a stage would, without any mathematics; counts what came back."""
    came_back = 0
    with joined(place):
        upstream, downstream = connect(
            blueprint, place, lay(blueprint, place, "gloo", Whereabouts()), 0
        )
        spec = blueprint.contract(max(place.rank - 1, 0)).activations
        for action in blueprint.schedule.actions():
            if not isinstance(action, Step):
                continue
            for _ in range(action.microbatches):
                came_back += talk_once(action, upstream, downstream, blueprint, place, spec)
        downstream.close()
        upstream.close()
    return came_back


def talk_once(step, upstream, downstream, blueprint, place, spec):
    _, labels = upstream.recv()
    if place.rank < 2:
        activations = torch.zeros(blueprint.contract(place.rank).activations.shape)
        downstream.send(activations, labels)
        if step.compare:
            downstream.send(activations)
    if step.compare:
        upstream.recv()
    if step.feedback and place.rank > 0:
        upstream.reply(torch.full(spec.shape, float(step.number)))
    if not step.heed:
        return 0
    feedback = downstream.feedback()
    assert all((t == step.number - 4).all() for t in feedback)
    return len(feedback)


@pytest.mark.parametrize("microbatches", [1, 4])
@pytest.mark.parametrize("every", [1, 2, 5])
@pytest.mark.parametrize("direction", ["upstream", "both"])
def test_feedback_arrives_in_order_and_nobody_waits_for_ever(
    direction, every, microbatches, run_ranks
):
    blueprint = draw(direction, every, microbatches)
    schedule = blueprint.schedule
    found = run_ranks(talk, 3, blueprint, timeout=30)
    heeds = sum(schedule.step(n).heed for n in range(schedule.num_steps)) * microbatches
    assert found == [heeds, heeds, 0]


def test_ends_of_the_chain(run_ranks):
    def kinds(place, blueprint):
        with joined(place):
            upstream, downstream = connect(
                blueprint, place, lay(blueprint, place, "gloo", Whereabouts()), 12
            )
        return type(upstream), type(downstream)

    assert run_ranks(kinds, 1, draw("downstream")) == [(Source, Nowhere)]
