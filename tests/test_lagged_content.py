"""Another content of lagged messages fits, without a change in pipeline/, record/ or memory/.

Here each module sends a copy of its first parameter and the number of the step upstream. The module
above moves by it some steps later. What is tested is the way that the messages take.
"""

import shutil

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensor

from pipeline_local import configfile
from pipeline_local.blueprint import blueprint as blueprints
from pipeline_local.data.datasets import describe
from pipeline_local.learning.lagged import LaggedQueue, LagPlan
from pipeline_local.learning.module import LocalModule
from pipeline_local.learning.spec import Spec
from pipeline_local.learning.step import LAG
from pipeline_local.memory.dry_run import stage_bytes
from pipeline_local.placement.draw import draw
from pipeline_local.ranks.rank import RankInfo
from pipeline_local.trainer import train


class Copies:
    """A parameter and a number."""

    def message(self, sender):
        return sender.parameters[0], Spec((1,), torch.int64)

    def awaiting(self, receiver):
        return (receiver.labels,)


class CopyingModule(LocalModule):
    """Moves by the mean of its downstream neighbour's first parameter."""

    copies = ()

    def lagged_awaiting(self):
        return (self._now().labels,)

    def lagged_message(self, first):
        parameter = next(self.body.parameters())
        return parameter.detach().clone(), torch.tensor([self._now().step.number])

    def apply_lagged(self, step, copy=None, number=None):
        kept = self.lagged.awaiting.pop()
        assert kept.step == step.number - LAG
        if copy is not None:
            assert isinstance(number, FakeTensor) or number.item() == kept.step
            self.copies = (*self.copies, copy)

    @torch.no_grad()
    def update(self, step):
        super().update(step)
        for copy in self.copies:
            next(self.body.parameters()).add_(copy.mean(), alpha=0.1)
        self.copies = ()


MLP = {
    "model": {"name": "mlp", "hidden": 12, "depth": 4},
    "train": {"steps": 11, "microbatches": 2},
    "parallel": {"wire_dtype": "float16"},
}
MAPS = {
    "model": {"name": "resnet20", "width": 4},
    "train": {"steps": 11},
    "channels_last": True,
}
"""Parameters of four axes, whose order differs on the way."""


@pytest.fixture(autouse=True)
def copying(monkeypatch):
    """The mathematics of this file; forked ranks have it, too."""
    plan = LagPlan(every=2, content=Copies())
    monkeypatch.setattr(blueprints, "LocalModule", CopyingModule)
    monkeypatch.setattr(LagPlan, "of", classmethod(lambda cls, reconcile: plan))


def parse(case, folder, **run):
    tree = {
        "data": {"name": "digits", "batch_size": 16, "limit": 64},
        "modules": {"count": 4},
        "head": {"name": "linear"},
        "checkpoint": {"every_steps": 7, "keep": 9},
        **case,
    }
    tree["parallel"] = {"threads": 1, **case.get("parallel", {})}
    return configfile.parse({**tree, "run": {"dir": str(folder), **run}})


def run_stage(rank_info, config):
    train(config, rank_info)


def checkpoints(folder):
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("module-*"))}


@pytest.mark.parametrize("case", [MLP, MAPS], ids=["narrow wire", "channels last"])
def test_it_takes_every_way(case, tmp_path, run_ranks, monkeypatch):
    train(parse(case, tmp_path / "one"), RankInfo())
    run_ranks(run_stage, 2, parse(case, tmp_path / "two"))
    one = checkpoints(tmp_path / "one")
    assert len(one) == 2 * 4
    assert one == checkpoints(tmp_path / "two")

    cut = tmp_path / "cut"
    shutil.copytree(tmp_path / "two", cut)
    (cut / "summary.json").unlink()
    shutil.rmtree(cut / "checkpoints" / "step-00000011")
    run_ranks(run_stage, 2, parse(case, cut, resume=True))
    assert checkpoints(cut) == one, "with messages of steps 4 and 6 on their way"

    monkeypatch.setattr(CopyingModule, "apply_lagged", lambda self, *_: self.lagged.awaiting.pop())
    train(parse(case, tmp_path / "without"), RankInfo())
    without = checkpoints(tmp_path / "without")
    changed = [name for name in one if one[name] != without[name]]
    assert len(changed) == 2 * 4, "even the last module, whose input is another"


def test_a_dry_run_keeps_what_the_module_keeps(tmp_path):
    config = parse(MLP, tmp_path)
    blueprint = draw(config, describe(config.data))
    held = stage_bytes(blueprint, range(1, 3), 2)
    labels, copy = 8 * 8, 12 * 12 * 4 + 8
    under_way = 3 * 2  # steps and microbatches
    assert held.lagged == 2 * under_way * (labels + copy)
    assert blueprint.contract(0).lagged == (
        Spec((12, 12), torch.bfloat16),
        Spec((1,), torch.int64),
    )


def test_who_keeps_nothing_is_refused():
    """It would be gone after a resume, and with it the order of all others."""
    with pytest.raises(ValueError, match="at least one tensor"):
        LaggedQueue("awaiting").push(0, 0)
