"""Stages of pipelines: evenly cut; theory says what torch's own orders of work come to."""

import math
from types import SimpleNamespace

import pytest

from pipeline_local import configfile
from pipeline_local.bench.baseline import UnavailableError, Workload
from pipeline_local.bench.pipelines import LOOPS, SCHEDULES, Pipelined, around, bubble, cut
from pipeline_local.data.images.datasets import describe
from pipeline_local.placement.costs import Link
from pipeline_local.placement.draw import draw as draw_blueprint
from pipeline_local.ranks.rank import RankInfo
from pipeline_local.simulation.simulator import Channel, Recv, Send, Work, simulate

WORK = {"F": 1.0, "I": 1.0, "W": 1.0, "B": 2.0}
"""Forward; gradients of inputs, of weights, of both."""


def workload(ranks=2, **more):
    tree = {
        "model": {"name": "mlp", "hidden": 16, "depth": 8},
        "data": {"name": "digits", "batch_size": 16},
        "modules": {"count": 2},
        "train": {"steps": 1},
    }
    config = configfile.parse({**tree, **more})
    rank_info = RankInfo(0, ranks, 0, ranks)
    return Workload(draw_blueprint(config, describe(config.data)), rank_info, "gloo")


def order_of_torch(name, ranks, microbatches):
    """What each rank does, in order: (stage, one letter of WORK)."""
    of_rank = {"group_size": ranks, "group_rank": 0, "num_stages": 2 * ranks, "submod": None}
    stages = [SimpleNamespace(stage_index=index, **of_rank) for index in range(2)]
    schedule = SCHEDULES[name](stages, microbatches, loss_fn=max)
    orders = [schedule.pipeline_order[rank] for rank in range(ranks)]
    return [[(act[0], act[1].value) for act in order if act is not None] for order in orders]


def program(order, down, up):
    """One rank's acts; channels by the stage that sends."""
    for stage, what in order:
        if what == "F" and stage - 1 in down:
            yield Recv(down[stage - 1])
        if what in "IB" and stage + 1 in up:
            yield Recv(up[stage + 1])
        yield Work(WORK[what])
        if what == "F" and stage in down:
            yield Send(down[stage], 1)
        if what in "IB" and stage in up:
            yield Send(up[stage], 1)


@pytest.mark.parametrize("name", LOOPS)
@pytest.mark.parametrize(("ranks", "microbatches"), [(2, 2), (2, 8), (4, 4), (4, 16)])
def test_the_bubble_of_theory_is_that_of_the_order_of_torch(name, ranks, microbatches):
    at_once, last = Link(0.0, math.inf), 2 * ranks - 1
    down = {stage: Channel(at_once) for stage in range(last)}
    up = {stage: Channel(at_once) for stage in range(1, last + 1)}
    orders = order_of_torch(name, ranks, microbatches)
    workers = simulate([program(order, down, up) for order in orders])
    (busy,) = {worker.busy for worker in workers}
    assert busy == 2 * 3 * microbatches
    end = max(worker.clock for worker in workers)
    assert 1 - busy / end == pytest.approx(bubble(name, ranks, microbatches))


def test_bubbles_of_the_others():
    assert bubble("1f1b", 4, 8) == bubble("deepspeed", 4, 8) == 3 / 11
    assert bubble("ddp", 4, 8) is None


def test_one_stage_per_rank_is_that_of_local():
    uneven = workload(modules={"cuts": [2]})
    assert cut(uneven, 1) == [range(2), range(2, 8)]


def test_stages_of_local_learning_count_as_equal():
    """All blocks are alike, so two for each would be evenest; but halves of 2 and of 6 they are."""
    uneven = workload(model={"name": "mlp", "hidden": 64, "depth": 8}, modules={"cuts": [2]})
    assert cut(uneven, 2) == [range(1), range(1, 2), range(2, 5), range(5, 8)]


def test_every_stage_gets_a_block():
    """The first stage of `local` has only one, and there are as many blocks as stages."""
    least = workload(model={"name": "mlp", "hidden": 16, "depth": 4}, modules={"cuts": [1]})
    assert cut(least, 2) == [range(k, k + 1) for k in range(4)]


def test_ranks_count_more_than_stages():
    """The evenest stages would be 4 and 3 of 7 blocks, 5 and 4 of 9: a rank with 4 / 7 + 5 / 9."""
    parts = around([1 / 7] * 7 + [1 / 9] * 9, ranks=2, loops=2)
    assert [len(part) for part in parts] == [4, 3, 4, 5]


def test_compiled_modules_cannot_be_split():
    with pytest.raises(UnavailableError, match="does not split the backward pass of compiled"):
        Pipelined(workload(compile=True), 2, "zerobubble").setup()


VIEWS = """
from torch import nn

def blocks(num_classes, image_shape):
    split = nn.Unflatten(-1, (8, 1))
    views = [nn.Sequential(nn.Linear(8, 8), split, nn.Flatten(-2)) for _ in range(3)]
    return [*views, nn.Linear(8, 8), nn.Sequential(nn.Flatten(), nn.Linear(64, num_classes))]
"""


def test_views_cannot_be_split(tmp_path, monkeypatch):
    (tmp_path / "puts_out_views.py").write_text(VIEWS)
    monkeypatch.syspath_prepend(str(tmp_path))
    views = workload(model={"name": "python:puts_out_views:blocks"})
    with pytest.raises(UnavailableError, match=r"block \S+ returns a view"):
        Pipelined(views, 2, "zerobubble").setup()
