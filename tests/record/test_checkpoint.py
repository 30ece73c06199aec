"""Checkpoints: whole or absent, per module, restored bit for bit."""

import pytest
import torch
from torch import nn

from pipeline_local.config import OptimizerConfig
from pipeline_local.errors import UserError
from pipeline_local.learning import optimizer
from pipeline_local.learning.module import LocalModule
from pipeline_local.learning.rules import Rules
from pipeline_local.learning.step import Step
from pipeline_local.record.checkpoint import Checkpoints


def make(index, width=3, seed=0):
    torch.manual_seed(seed)
    body = nn.Sequential(nn.Linear(3, width), nn.BatchNorm1d(width))
    config = OptimizerConfig(name="adamw")
    return LocalModule(
        index, body, nn.Linear(width, 5), lambda p: optimizer.build(config, p), Rules()
    )


def step(module, number):
    g = torch.Generator().manual_seed(number)
    module(torch.randn(4, 3, generator=g), torch.arange(4), Step(number, 0.01))
    module.signal()
    module.learn()
    module.update(Step(number, 0.01))


def state(module):
    return {**module.state_dict(), **optimizer.tensors(module.optimizer)}


def test_restored_modules_go_on_bit_for_bit(tmp_path):
    checkpoints = Checkpoints(tmp_path, 2)
    modules = [make(0), make(1)]
    for module in modules:
        step(module, 0)
    checkpoints.save(modules, 1)
    restored = [make(0, seed=9), make(1, seed=9)]
    for old, new in zip(modules, restored, strict=True):
        checkpoints.load(new, 1)
        step(old, 1)
        step(new, 1)
        before, after = state(old), state(new)
        assert before.keys() == after.keys()
        assert all(torch.equal(before[name], after[name]) for name in before)


def test_a_checkpoint_counts_once_all_modules_are_there(tmp_path):
    checkpoints = Checkpoints(tmp_path, 2)
    assert checkpoints.latest() is None
    checkpoints.save([make(0), make(1)], 10)
    checkpoints.save([make(1)], 20)
    assert checkpoints.latest() == 10
    checkpoints.save([make(0)], 20)
    assert checkpoints.latest() == 20


def test_a_write_that_was_cut_off_does_not_count(tmp_path):
    checkpoints = Checkpoints(tmp_path, 1)
    checkpoints.save([make(0)], 10)
    (tmp_path / "step-00000020").mkdir()
    (tmp_path / "step-00000020" / "module-001.partial").write_bytes(b"half")
    assert checkpoints.latest() == 10


def test_pruning_keeps_the_newest_complete_ones(tmp_path):
    checkpoints = Checkpoints(tmp_path, 2)
    for number in (10, 20, 30):
        checkpoints.save([make(0), make(1)], number)
    checkpoints.save([make(0)], 40)
    checkpoints.prune(keep=2)
    names = sorted(path.name for path in tmp_path.iterdir())
    assert names == ["step-00000020", "step-00000030", "step-00000040"]


def test_errors_name_the_file_and_the_remedy(tmp_path):
    checkpoints = Checkpoints(tmp_path, 1)
    checkpoints.save([make(0)], 10)
    with pytest.raises(UserError, match=r"module-001.*another model.*resume with"):
        checkpoints.load(make(0, width=4), 10)
    path = tmp_path / "step-00000010" / "module-001.safetensors"
    path.write_bytes(path.read_bytes()[:50])
    with pytest.raises(UserError, match=r"module-001.*cannot be read"):
        checkpoints.load(make(0), 10)
