"""A stage's edges: feedback never closes a cycle of waits."""

import pytest
import torch

from pipeline_local import configfile
from pipeline_local.data.images.datasets import describe
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
        "train": {"steps": 16, "microbatches": microbatches, "evaluate_every": 99, "log_every": 4},
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
        downstream.finish(0)
        upstream.finish()
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


def cut_short(place, blueprint, start, stop):
    """Leave the schedule before step `stop`; what the receives that were posted then have got."""
    schedule = blueprint.schedule
    kept = [n for n in range(max(0, start - 4), start) if schedule.step(n).feedback]
    under_way = [n for n in range(max(0, stop - 4), stop) if schedule.step(n).feedback]
    with joined(place):
        upstream, downstream = connect(
            blueprint, place, lay(blueprint, place, "gloo", Whereabouts()), start
        )
        spec = blueprint.contract(max(place.rank - 1, 0)).activations
        for number in kept if place.rank > 0 else ():
            upstream.reply(torch.full(spec.shape, float(number)))
        for number in range(start, stop):
            talk_once(schedule.step(number), upstream, downstream, blueprint, place, spec)
        downstream.finish(len(under_way))
        upstream.finish()
        receivers = [getattr(upstream, "messages", None), getattr(downstream, "replies", None)]
        posted = [p for receiver in receivers if receiver for p in receiver._posted]
        found = [bool(pending.wait().any()) for pending in posted]
        upstream.close()
        return found


@pytest.mark.parametrize(("every", "start"), [(1, 0), (1, 6), (3, 0), (3, 5), (9, 5)])
@pytest.mark.parametrize("steps", [1, 2, 4])
def test_a_run_that_is_cut_short_leaves_no_transfer_hanging(every, start, steps, run_ranks):
    """Also where not one gradient has come back, as the steps that send them were not reached."""
    found = run_ranks(cut_short, 3, draw("both", every), start, start + steps, timeout=30)
    first, second, third = found
    assert not any(first + second + third), "zeros, and not a gradient that was still to be taken"
    assert len(third) == 2, "activations and labels of the next step are always posted"
    assert len(second) == 2 + len(first)
    if every == 9:
        assert len(first) == 1, "the gradient of step 9, of which nobody has seen any"


def test_ends_of_the_chain(run_ranks):
    def kinds(place, blueprint):
        with joined(place):
            upstream, downstream = connect(
                blueprint, place, lay(blueprint, place, "gloo", Whereabouts()), 16
            )
        return type(upstream), type(downstream)

    assert run_ranks(kinds, 1, draw("downstream")) == [(Source, Nowhere)]
