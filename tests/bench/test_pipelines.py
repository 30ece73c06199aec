"""Stages of pipelines: evenly cut, each rank's together; and what a schedule cannot run."""

import sys
from importlib.machinery import ModuleSpec
from types import ModuleType

import pytest

from pipeline_local.bench import pipelines
from pipeline_local.bench.baseline import UnavailableError, Workload
from pipeline_local.bench.methods import PIPELINED
from pipeline_local.bench.pipelines import SPLITTING, Pipelined, around, cut
from pipeline_local.configfile import configfile
from pipeline_local.data.images.datasets import describe
from pipeline_local.placement.draw import draw as draw_blueprint
from pipeline_local.ranks.rank import RankInfo


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


def test_one_stage_per_rank_is_that_of_local():
    uneven = workload(modules={"cuts": [2]})
    assert cut(uneven, [0, 1]) == [range(2), range(2, 8)]


def test_stages_of_local_learning_count_as_equal():
    """All blocks are alike, so two for each would be evenest; but halves of 2 and of 6 they are."""
    uneven = workload(model={"name": "mlp", "hidden": 64, "depth": 8}, modules={"cuts": [2]})
    assert cut(uneven, [0, 1, 0, 1]) == [range(1), range(1, 2), range(2, 5), range(5, 8)]


def test_every_stage_gets_a_block():
    """The first stage of `local` has only one, and there are as many blocks as stages."""
    least = workload(model={"name": "mlp", "hidden": 16, "depth": 4}, modules={"cuts": [1]})
    assert cut(least, [0, 1, 1, 0]) == [range(k, k + 1) for k in range(4)]


def test_ranks_count_more_than_stages():
    """The evenest stages would be 4 and 3 of 7 blocks, 5 and 4 of 9: a rank with 4 / 7 + 5 / 9."""
    costs = [1 / 7] * 7 + [1 / 9] * 9
    assert [len(part) for part in around(costs, [0, 1, 0, 1])] == [4, 3, 4, 5]


def test_a_v_pairs_the_first_stage_with_the_last():
    """So a heavy stem is balanced by few blocks at the end."""
    parts = around([3.0, *[1.0] * 9], [0, 1, 1, 0])
    totals = [sum([3.0, *[1.0] * 9][part.start : part.stop]) for part in parts]
    assert totals[0] + totals[3] == totals[1] + totals[2] == 6


@pytest.mark.parametrize("name", SPLITTING)
def test_compiled_modules_cannot_be_split(name):
    with pytest.raises(UnavailableError, match="does not split the backward pass of compiled"):
        Pipelined(workload(compile=True), 4, name).setup()


def deepspeed_of(monkeypatch, version, **contents):
    """A DeepSpeed of another version, as far as it is looked at."""
    whole, pipe = (ModuleType(name, "") for name in ("deepspeed", "deepspeed.pipe"))
    whole.__spec__ = ModuleSpec("deepspeed", None)
    whole.__version__, whole.pipe = version, pipe
    vars(pipe).update(contents)
    monkeypatch.setitem(sys.modules, "deepspeed", whole)
    monkeypatch.setitem(sys.modules, "deepspeed.pipe", pipe)


@pytest.mark.parametrize("name", ["dualpipev", "deepspeed-dualpipev"])
def test_dualpipev_needs_a_microbatch_for_each_stage(monkeypatch, name):
    deepspeed_of(monkeypatch, "0.19.8", DualPipeVModule=object)
    reason = "a microbatch for each of 4 stages, got 2; pass --microbatches 4"
    with pytest.raises(UnavailableError, match=reason):
        PIPELINED[name](workload(), 2).setup()


@pytest.mark.parametrize("name", ["zbv", "dualpipev"])
def test_a_torch_that_sends_to_itself(monkeypatch, name):
    """As the lowest version that the package takes does."""
    monkeypatch.setattr(pipelines, "TO_ITSELF", True)
    with pytest.raises(UnavailableError, match="needs a newer torch"):
        PIPELINED[name](workload(), 4).setup()


def test_a_deepspeed_without_dualpipev(monkeypatch):
    """The lowest version that the package takes has none."""
    deepspeed_of(monkeypatch, "0.19.4")
    reason = "DeepSpeed 0.19.4 has no DualPipeV; pip install -U deepspeed"
    with pytest.raises(UnavailableError, match=f"^{reason}$"):
        PIPELINED["deepspeed-dualpipev"](workload(), 4).setup()


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
