"""Parameter copies in a run: which parameters a head has, in which step."""

from dataclasses import replace
from itertools import pairwise

import pytest
import torch
from safetensors import safe_open
from torch import nn

from pipeline_local import fit
from pipeline_local.configfile import configfile
from pipeline_local.data.datasets import describe
from pipeline_local.errors import UserError
from pipeline_local.learning.step import LAG
from pipeline_local.placement.draw import draw
from pipeline_local.ranks.rank import RankInfo
from pipeline_local.training.callbacks import Callback
from pipeline_local.training.train import train

SHARE = 1 - 0.8**3


def parse(**sections):
    tree = {
        "model": {"name": "resnet20", "width": 4},
        "data": {"name": "digits", "batch_size": 16, "limit": 64},
        "modules": {"count": 3},
        "head": {"name": "ema", "refresh": 3, "decay": 0.8},
        "optimizer": {"lr": 0.1, "weight_decay": 0.1},
        "parallel": {"threads": 1},
    }
    own = {name: {**tree.get(name, {}), **section} for name, section in sections.items()}
    return configfile.parse({**tree, "train": {"steps": 12}, **own})


def blueprint_of(**sections):
    config = parse(**sections)
    return draw(config, describe(config.data))


def values(module):
    return [p.detach().clone() for p in module.parameters()]


class Watch(Callback):
    """Notes, before the first step and after each, the copies and what they are copies of."""

    def __init__(self):
        self.copies, self.blocks = [], []

    def on_start(self, run, step):
        self.note(run)

    def on_step(self, run, step):
        self.note(run)

    def note(self, run):
        self.copies.append([values(module.head.copy) for module in run.modules[:-1]])
        self.blocks.append([values(module.body[0]) for module in run.modules[1:]])


@pytest.mark.parametrize("microbatches", [1, 2])
def test_the_copy_lags_by_a_fixed_number_of_steps(microbatches, tmp_path):
    """Nothing else moves it: no optimizer, no weight decay."""
    watch = Watch()
    plan = {"steps": 12, "microbatches": microbatches}
    train(parse(train=plan, run={"dir": str(tmp_path / "run")}), RankInfo(), [watch])
    expected = watch.blocks[0]
    used = []
    for step in range(12):
        published = step - LAG
        if published > 0 and published % 3 == 0:
            used.append(step)
            for mine, theirs in zip(expected, watch.blocks[published], strict=True):
                for p, new in zip(mine, theirs, strict=True):
                    p.lerp_(new, SHARE)
        for mine, theirs in zip(watch.copies[step + 1], expected, strict=True):
            assert all(torch.equal(a, b) for a, b in zip(mine, theirs, strict=True)), step
    assert used == [7, 10]
    assert all((a != b).any() for a, b in zip(watch.copies[-1][0], watch.copies[0][0], strict=True))


def test_the_first_copy_is_the_block_as_it_is_initialised():
    """From the seed alone, and from a file."""
    blueprint = blueprint_of()
    modules = [blueprint.module(index, torch.device("cpu")) for index in range(3)]
    for module, following in pairwise(modules):
        mine, theirs = module.head.copy.state_dict(), following.body[0].state_dict()
        assert mine.keys() == theirs.keys()
        assert all(torch.equal(mine[name], theirs[name]) for name in mine)
    state = {
        block.prefix + name: torch.full_like(value, 3)
        for module in modules
        for block, part in blueprint.parts(module)
        for name, value in part.state_dict().items()
    }
    classifier = values(modules[0].head.layers.classifier)
    blueprint.load_weights(modules[0], blueprint.fit_weights(state))
    assert all((value == 3).all() for value in modules[0].head.copy.state_dict().values())
    after = values(modules[0].head.layers.classifier)
    assert all(torch.equal(a, b) for a, b in zip(classifier, after, strict=True))


def test_the_optimizer_never_sees_a_copy():
    module = blueprint_of().module(0, torch.device("cpu"))
    copied = {id(p) for p in module.head.copy.parameters()}
    optimized = {id(p) for group in module.optimizer.param_groups for p in group["params"]}
    assert copied
    assert not copied & optimized
    assert {id(p) for p in module.trainable} == optimized


def points(count):
    x = torch.randn(count, 8, generator=torch.Generator().manual_seed(0))
    return x, (x.sum(1) > 0).long()


def network():
    torch.manual_seed(0)
    layers = [nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 12), nn.ReLU(), nn.Linear(12, 2)]
    return nn.Sequential(*layers)


def test_a_programs_own_model_gives_the_first_copy(tmp_path):
    """With the values that it comes with."""
    model = network()
    third = model[2].weight.detach().clone()
    fit(
        model,
        points(64),
        points(20),
        batch_size=16,
        run_dir=tmp_path / "run",
        train={"steps": 2},
        modules=2,
        head={"name": "ema"},
        parallel={"threads": 1},
    )
    file = next((tmp_path / "run").glob("checkpoints/*/module-001*"))
    with safe_open(file, "pt") as state:
        (copied,) = (n for n in state.keys() if n.startswith("head.layers.copy") and "weight" in n)  # noqa: SIM118
        assert torch.equal(state.get_tensor(copied), third)


def test_a_next_block_without_parameters_is_one_clear_line():
    blueprint = blueprint_of()
    blocks, first = list(blueprint.backbone.blocks), blueprint.modules[1].start
    blocks[first] = replace(blocks[first], module=nn.ReLU())
    backbone = replace(blueprint.backbone, blocks=tuple(blocks))
    with pytest.raises(UserError, match=r"head\.name: ema does not fit behind block") as error:
        replace(blueprint, backbone=backbone).module(0, torch.device("cpu"))
    assert "the next one, has no parameters" in str(error.value)
    assert "\n" not in str(error.value)
