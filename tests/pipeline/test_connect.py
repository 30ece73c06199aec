"""A stage's edges: what flows upstream never closes a cycle of waits."""

import pytest
import torch
import torch.distributed as dist

from pipeline_local.configfile import configfile
from pipeline_local.data.images.datasets import describe
from pipeline_local.learning.step import Step
from pipeline_local.pipeline.connect import connect, open_edges, open_replicas
from pipeline_local.pipeline.edge import Nowhere
from pipeline_local.pipeline.source import Source
from pipeline_local.placement.draw import draw as draw_blueprint
from pipeline_local.placement.placement import Placement
from pipeline_local.ranks.join import joined
from pipeline_local.ranks.mesh import Mesh, chain
from pipeline_local.watch.status import EVERYONE, RankStatus


def draw(direction, every=1, microbatches=1, image_size=8, refresh=None):
    tree = {
        "model": {"name": "resnet20", "width": 2},
        "modules": {"count": 3},
        "head": {"name": "ema", "refresh": refresh} if refresh else {"name": "linear"},
        "data": {"name": "synthetic", "batch_size": 12, "image_size": image_size},
        "train": {"steps": 16, "microbatches": microbatches, "evaluate_every": 99, "log_every": 4},
        "reconcile": {"weight": 1.0, "direction": direction, "every": every},
    }
    config = configfile.parse(tree)
    return draw_blueprint(config, describe(config.data))


def joined_edges(blueprint, rank_info, start):
    modules = Placement.of(blueprint, rank_info.world_size).stages[rank_info.rank]
    mesh = chain(rank_info.world_size)
    ends = open_edges(blueprint, rank_info, "gloo", RankStatus(), mesh)
    return connect(blueprint, modules, rank_info, ends, start, mesh)


def talk(rank_info, blueprint):
    """Follow the schedule as a stage would, without any mathematics; counts what came back."""
    came_back = 0
    with joined(rank_info):
        upstream, downstream = joined_edges(blueprint, rank_info, 0)
        for action in blueprint.run_plan.actions():
            if not isinstance(action, Step):
                continue
            for part in range(action.microbatches):
                came_back += talk_once(action, part, upstream, downstream, blueprint, rank_info)
        downstream.finish(0)
        upstream.finish()
        upstream.close()
    return came_back


def lagged(blueprint, rank, number, part):
    """The message that a rank sends upstream: every tensor holds the number of the step."""
    contents = blueprint.run_plan.lag.sent(rank, number, part, blueprint.config.train.microbatches)
    specs = blueprint.contract(rank - 1).lagged if rank else {}
    tensors = [spec for content in contents for spec in specs.get(content, ())]
    return [torch.full(spec.shape, float(number)) for spec in tensors]


def talk_once(step, part, upstream, downstream, blueprint, rank_info):
    """A microbatch; whether a message has come back."""
    _, labels = upstream.recv()
    if rank_info.rank < 2:
        activations = torch.zeros(blueprint.contract(rank_info.rank).activations.shape)
        downstream.send(activations, labels)
        if step.compare:
            downstream.send(activations)
    if step.compare:
        upstream.recv()
    if message := lagged(blueprint, rank_info.rank, step.number, part):
        upstream.send_lagged(*message)
    if not blueprint.run_plan.lag.applied(rank_info.rank, step.number, part, step.microbatches):
        return 0
    arrived = downstream.recv_lagged()
    assert all((t == step.number - 4).all() for t in arrived)
    return len(arrived) > 0


@pytest.mark.parametrize("microbatches", [1, 4])
def test_copies_arrive_once_per_period(microbatches, run_ranks):
    """Those of steps 3, 6 and 9; those of 12 and 15 would come after the end."""
    blueprint = draw("downstream", 1, microbatches, refresh=3)
    assert run_ranks(talk, 3, blueprint, timeout=30) == [3, 3, 0]


@pytest.mark.parametrize("microbatches", [1, 4])
@pytest.mark.parametrize(("every", "refresh"), [(1, None), (2, 4), (5, None)])
@pytest.mark.parametrize("direction", ["upstream", "both"])
def test_feedback_arrives_in_order_and_nobody_waits_for_ever(
    direction, every, refresh, microbatches, run_ranks
):
    """With every second one come copies."""
    blueprint = draw(direction, every, microbatches, refresh=refresh)
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
        for number in kept if rank_info.rank > 0 else ():
            upstream.send_lagged(*lagged(blueprint, rank_info.rank, number, 0))
        for number in range(start, stop):
            talk_once(run_plan.step(number), 0, upstream, downstream, blueprint, rank_info)
        downstream.finish(stop)
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


class Noting(RankStatus):
    """Notes whom it has waited for."""

    def __init__(self):
        super().__init__()
        self.peers = set()

    def waiting(self, peer):
        self.peers.add(peer)
        return super().waiting(peer)


def first_use(rank_info, mesh):
    """How many replicas there are, the sums of so many ranks, and whom this one has waited for."""
    status, sums = Noting(), []
    all_reduce = dist.all_reduce

    def seen(tensor, group, async_op):
        sums.append((tensor.device == rank_info.device, group.size()))
        return all_reduce(tensor, group=group, async_op=async_op)

    dist.all_reduce = seen
    with joined(rank_info):
        replicas = open_replicas(mesh, rank_info, "gloo", status)
        return replicas.size, sums, status.peers


def test_a_group_of_replicas_has_been_used_once(run_ranks):
    """As connections are: nothing of it is left to be made within a step."""
    once = (2, [(True, 2)], {EVERYONE})
    assert run_ranks(first_use, 3, Mesh((2, 1))) == [once, once, (1, [], set())]


def test_ends_of_the_chain(run_ranks):
    def kinds(rank_info, blueprint):
        with joined(rank_info):
            upstream, downstream = joined_edges(blueprint, rank_info, 16)
        return type(upstream), type(downstream)

    assert run_ranks(kinds, 1, draw("downstream")) == [(Source, Nowhere)]
