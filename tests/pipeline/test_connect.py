"""A stage's edges: feedback never closes a cycle of waits."""

import pytest
import torch

from pipeline_local import configfile
from pipeline_local.data.images.datasets import describe
from pipeline_local.learning.step import Step
from pipeline_local.pipeline.connect import connect, open_edges
from pipeline_local.pipeline.edge import Nowhere
from pipeline_local.pipeline.source import Source
from pipeline_local.placement.draw import draw as draw_blueprint
from pipeline_local.placement.placement import Placement
from pipeline_local.ranks.rank import joined
from pipeline_local.watch.status import RankStatus


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
    return draw_blueprint(config, describe(config.data))


def joined_edges(blueprint, rank_info, start):
    modules = Placement.of(blueprint, rank_info.world_size).stages[rank_info.rank]
    ends = open_edges(blueprint, rank_info, "gloo", RankStatus())
    return connect(blueprint, modules, rank_info, ends, start)


def talk(rank_info, blueprint):
    """Follow the schedule as a stage would, without any mathematics; counts what came back."""
    came_back = 0
    with joined(rank_info):
        upstream, downstream = joined_edges(blueprint, rank_info, 0)
        spec = blueprint.contract(max(rank_info.rank - 1, 0)).activations
        for action in blueprint.run_plan.actions():
            if not isinstance(action, Step):
                continue
            for _ in range(action.microbatches):
                came_back += talk_once(action, upstream, downstream, blueprint, rank_info, spec)
        downstream.finish(0)
        upstream.finish()
        upstream.close()
    return came_back


def talk_once(step, upstream, downstream, blueprint, rank_info, spec):
    _, labels = upstream.recv()
    if rank_info.rank < 2:
        activations = torch.zeros(blueprint.contract(rank_info.rank).activations.shape)
        downstream.send(activations, labels)
        if step.compare:
            downstream.send(activations)
    if step.compare:
        upstream.recv()
    lag = blueprint.run_plan.lag
    if rank_info.rank > 0 and lag.sent(rank_info.rank, step.number, 0, 1):
        upstream.send_lagged(torch.full(spec.shape, float(step.number)))
    if not lag.applied(rank_info.rank, step.number, 0, 1):
        return 0
    feedback = downstream.recv_lagged()
    assert all((t == step.number - 4).all() for t in feedback)
    return len(feedback)


@pytest.mark.parametrize("microbatches", [1, 4])
@pytest.mark.parametrize("every", [1, 2, 5])
@pytest.mark.parametrize("direction", ["upstream", "both"])
def test_feedback_arrives_in_order_and_nobody_waits_for_ever(
    direction, every, microbatches, run_ranks
):
    blueprint = draw(direction, every, microbatches)
    run_plan = blueprint.run_plan
    found = run_ranks(talk, 3, blueprint, timeout=30)
    applies = len([n for n in range(4, run_plan.num_steps) if (n - 4) % every == 0]) * microbatches
    assert found == [applies, applies, 0]


def cut_short(rank_info, blueprint, start, stop):
    """Leave the schedule before step `stop`; what the receives that were posted then have got."""
    run_plan = blueprint.run_plan
    kept = [number for number, _ in run_plan.lag.under_way(1, start, 1)]
    with joined(rank_info):
        upstream, downstream = joined_edges(blueprint, rank_info, start)
        spec = blueprint.contract(max(rank_info.rank - 1, 0)).activations
        for number in kept if rank_info.rank > 0 else ():
            upstream.send_lagged(torch.full(spec.shape, float(number)))
        for number in range(start, stop):
            talk_once(run_plan.step(number), upstream, downstream, blueprint, rank_info, spec)
        downstream.finish(run_plan.under_way(1, stop))
        upstream.finish()
        receivers = [getattr(upstream, "messages", None), getattr(downstream, "lagged", None)]
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
    def kinds(rank_info, blueprint):
        with joined(rank_info):
            upstream, downstream = joined_edges(blueprint, rank_info, 16)
        return type(upstream), type(downstream)

    assert run_ranks(kinds, 1, draw("downstream")) == [(Source, Nowhere)]
