"""Another content of lagged messages fits, without a change in pipeline/, record/ or memory/.

Here a parameter of the last module goes upstream over several hops: each module passes on what it
has got in the step after, and moves by it. What is tested is the way that the messages take.
"""

import shutil

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensor

from pipeline_local.blueprint import blueprint as blueprints
from pipeline_local.blueprint import run_plan
from pipeline_local.configfile import configfile
from pipeline_local.data.datasets import describe
from pipeline_local.learning.lag_plan import LaggedContent, LagPlan
from pipeline_local.learning.lagged_queue import LaggedQueue
from pipeline_local.learning.module import LocalModule
from pipeline_local.learning.spec import Spec
from pipeline_local.learning.step import LAG
from pipeline_local.memory.dry_run import stage_bytes
from pipeline_local.placement.draw import draw
from pipeline_local.ranks.rank import RankInfo
from pipeline_local.training.train import train

LAST = 3
HOP = LAG + 1
"""Steps from the sending of a module to that of the next one upstream."""


class Relay(LaggedContent):
    """The first parameter of the last module, and the step in which that one has sent it."""

    every = 6
    once = True

    def is_sent(self, sender, step):
        since = step - (LAST - sender) * HOP
        return since >= 0 and since % self.every == 0

    def specs(self, sender, of):
        return of(LAST).blocks[0][0], Spec((1,), torch.int64)

    def message(self, sender, g, passed):
        return sender.copy.clone(), sender.published.clone()

    def apply(self, receiver, step, kept, arrived):
        assert kept is None
        if receiver.index == LAST:
            assert not list(arrived)
            return
        receiver.copy.copy_(next(arrived))
        receiver.published.copy_(next(arrived))
        if not isinstance(receiver.published, FakeTensor):
            assert receiver.published.item() == step.number + 1 - (LAST - receiver.index) * HOP
        receiver.moves = True


class RelayingModule(LocalModule):
    """Keeps a copy of the last module's first parameter, and moves by its mean when it comes."""

    shape: tuple[int, ...]
    moves = False

    def __init__(self, *args):
        super().__init__(*args)
        self.register_buffer("copy", torch.zeros(self.shape))
        self.register_buffer("published", torch.zeros(1, dtype=torch.int64))

    def learn(self):
        if self.index == LAST:
            self.copy.copy_(next(self.body.parameters()).detach())
            self.published.fill_(self._now().step.number)
        return super().learn()

    @torch.no_grad()
    def update(self, step):
        super().update(step)
        if self.moves:
            next(self.body.parameters()).add_(self.copy.mean(), alpha=0.1)
        self.moves = False


MLP = {
    "model": {"name": "mlp", "hidden": 12, "depth": 4},
    "train": {"steps": 18, "microbatches": 2},
    "parallel": {"wire_dtype": "float16"},
}
MAPS = {
    "model": {"name": "resnet20", "width": 4},
    "train": {"steps": 18},
    "channels_last": True,
}
"""Parameters of four axes, whose order differs on the way."""


@pytest.fixture(autouse=True)
def relaying(monkeypatch):
    """The mathematics of this file; forked ranks have it, too."""
    plan = LagPlan((Relay(),))
    monkeypatch.setattr(blueprints, "LocalModule", RelayingModule)
    monkeypatch.setattr(run_plan, "lag_plan", lambda *_: plan)


def parse(case, folder, **run):
    tree = {
        "data": {"name": "digits", "batch_size": 16, "limit": 64},
        "modules": {"count": 4},
        "head": {"name": "linear"},
        "checkpoint": {"every_steps": 10, "keep": 9},
        **case,
    }
    tree["parallel"] = {"threads": 1, **case.get("parallel", {})}
    return configfile.parse({**tree, "run": {"dir": str(folder), **run}})


def run_stage(rank_info, config):
    train(config, rank_info)


def checkpoints(folder):
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("module-*"))}


@pytest.mark.parametrize(
    ("case", "shape"),
    [(MLP, (12, 12)), (MAPS, (16, 8, 3, 3))],
    ids=["narrow wire", "channels last"],
)
def test_it_takes_every_way(case, shape, tmp_path, run_ranks, monkeypatch):
    monkeypatch.setattr(RelayingModule, "shape", shape, raising=False)
    train(parse(case, tmp_path / "one"), RankInfo())
    run_ranks(run_stage, 2, parse(case, tmp_path / "two"))
    one = checkpoints(tmp_path / "one")
    assert len(one) == 2 * 4
    assert one == checkpoints(tmp_path / "two")

    cut = tmp_path / "cut"
    shutil.copytree(tmp_path / "two", cut)
    (cut / "summary.json").unlink()
    shutil.rmtree(cut / "checkpoints" / "step-00000018")
    run_ranks(run_stage, 3, parse(case, cut, resume=True))
    assert checkpoints(cut) == one, "one message on its way, and one copy to be passed on"

    monkeypatch.setattr(RelayingModule, "moves", property(lambda _: False, lambda *_: None))
    train(parse(case, tmp_path / "without"), RankInfo())
    without = checkpoints(tmp_path / "without")
    changed = [name for name in one if one[name] != without[name]]
    assert len(changed) == 3 + 4, "in 10 steps all but the first, which is three hops away"


def test_a_dry_run_keeps_what_the_module_keeps(tmp_path, monkeypatch):
    monkeypatch.setattr(RelayingModule, "shape", (12, 12), raising=False)
    config = parse(MLP, tmp_path)
    blueprint = draw(config, describe(config.data))
    held = stage_bytes(blueprint, range(1, 3), 2)
    assert held.lagged == 2 * (12 * 12 * 4 + 8), "one message of each, whatever the microbatches"
    (message,) = blueprint.contract(0).lagged.values()
    assert message == (Spec((12, 12), torch.bfloat16), Spec((1,), torch.int64))


def test_who_keeps_nothing_is_refused():
    """It would be gone after a resume, and with it the order of all others."""
    with pytest.raises(ValueError, match="at least one tensor"):
        LaggedQueue("awaiting").push(0, 0)
