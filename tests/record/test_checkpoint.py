"""Checkpoints: whole or absent, per module, restored bit for bit."""

import errno
import os
import re
from pathlib import Path

import pytest
import torch
from torch import nn

from pipeline_local.config import OptimizerConfig
from pipeline_local.engines import optimizer
from pipeline_local.errors import UserError
from pipeline_local.learning.module import LocalModule
from pipeline_local.learning.rules import Rules
from pipeline_local.learning.step import Step
from pipeline_local.record.checkpoint import Checkpoints, tensors


def save(checkpoints, modules, step):
    """At once, where training copies and writes in the background."""
    for module in modules:
        state = {name: value.cpu().contiguous() for name, value in tensors(module).items()}
        checkpoints.write(module.index, state, step, type(module.optimizer).__name__)


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
    save(checkpoints, modules, 1)
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
    save(checkpoints, [make(0), make(1)], 10)
    save(checkpoints, [make(1)], 20)
    assert checkpoints.latest() == 10
    save(checkpoints, [make(0)], 20)
    assert checkpoints.latest() == 20


def test_a_write_that_was_cut_off_does_not_count(tmp_path):
    checkpoints = Checkpoints(tmp_path, 1)
    save(checkpoints, [make(0)], 10)
    (tmp_path / "step-00000020").mkdir()
    (tmp_path / "step-00000020" / "module-001.partial").write_bytes(b"half")
    assert checkpoints.latest() == 10


def test_pruning_keeps_the_newest_complete_ones(tmp_path):
    checkpoints = Checkpoints(tmp_path, 2)
    for number in (10, 20, 30):
        save(checkpoints, [make(0), make(1)], number)
    save(checkpoints, [make(0)], 40)
    checkpoints.prune(keep=2)
    names = sorted(path.name for path in tmp_path.iterdir())
    assert names == ["step-00000020", "step-00000030", "step-00000040"]


def test_pruning_counts_only_what_is_sound(tmp_path):
    checkpoints = saved(tmp_path, 2, 10, 20, 30, 40)
    flip(module_file(tmp_path, 40, 2), 0.9)
    checkpoints.prune(keep=2)
    names = sorted(path.name for path in tmp_path.iterdir())
    assert names == ["step-00000020", "step-00000030", "step-00000040"]


def test_pruning_leaves_everything_while_too_little_is_sound(tmp_path):
    checkpoints = saved(tmp_path, 1, 10, 20)
    flip(module_file(tmp_path, 20, 1), 0.9)
    checkpoints.prune(keep=2)
    assert len(list(tmp_path.iterdir())) == 2


def test_what_was_set_aside_as_damaged_is_never_pruned(tmp_path):
    checkpoints = saved(tmp_path, 1, 10, 20, 30)
    for name in ("step-00000005.damaged", "step-00000005.unfinished", "step-00000006.unfinished-1"):
        (tmp_path / name).mkdir()
    checkpoints.prune(keep=1)
    names = sorted(path.name for path in tmp_path.iterdir())
    assert names == ["step-00000005.damaged", "step-00000030"]


def test_errors_name_the_file_and_the_remedy(tmp_path):
    checkpoints = saved(tmp_path, 1, 10)
    with pytest.raises(UserError, match=r"module-001.*another model.*resume with"):
        checkpoints.load(make(0, width=4), 10)
    path = module_file(tmp_path, 10, 1)
    path.write_bytes(path.read_bytes()[:50])
    with pytest.raises(UserError, match=r"module-001.*cut off.*fall back to an earlier"):
        checkpoints.load(make(0), 10)


# -- damage: what happens to files, how it is named, and whether the rest is taken for unfinished --


def module_file(folder, step, number):
    return folder / f"step-{step:08d}" / f"module-{number:03d}.safetensors"


def saved(folder, num_modules, *steps):
    checkpoints = Checkpoints(folder, num_modules)
    for number in steps:
        save(checkpoints, [make(k) for k in range(num_modules)], number)
    return checkpoints


def flip(path, where):
    data = bytearray(path.read_bytes())
    data[int(where * len(data))] ^= 4
    path.write_bytes(data)


def into_folder(path):
    path.unlink()
    path.mkdir()


DAMAGES = {
    "truncated": (lambda p: p.write_bytes(p.read_bytes()[:-1]), "does not match its", "damaged"),
    "header only": (lambda p: p.write_bytes(p.read_bytes()[:100]), "is cut off", "damaged"),
    "empty": (lambda p: p.write_bytes(b""), "is cut off", "damaged"),
    "zeros": (lambda p: p.write_bytes(bytes(p.stat().st_size)), "no checksum", "damaged"),
    "bit of the length": (lambda p: flip(p, 0), "", "damaged"),
    "bit of the header": (lambda p: flip(p, 0.2), "does not match its", "damaged"),
    "bit of a tensor": (lambda p: flip(p, 0.99), "does not match its", "damaged"),
    "of another module": (
        lambda p: p.write_bytes(p.with_name("module-001.safetensors").read_bytes()),
        "another module or step",
        "damaged",
    ),
    "of another step": (
        lambda p: p.write_bytes(module_file(p.parent.parent, 10, 2).read_bytes()),
        "another module or step",
        "damaged",
    ),
    "a folder in its place": (into_folder, "cannot be read (Is a directory)", "damaged"),
    "missing": (lambda p: p.unlink(), "is missing", "unfinished"),
    "cut off by a kill": (lambda p: p.rename(p.with_suffix(".partial")), "missing", "unfinished"),
}


@pytest.mark.parametrize("name", DAMAGES)
def test_damage_is_named_and_the_previous_checkpoint_used(name, tmp_path):
    damage, message, kind = DAMAGES[name]
    saved(tmp_path, 2, 10, 20)
    damage(module_file(tmp_path, 20, 2))
    left = {path.name for path in (tmp_path / "step-00000020").iterdir()}
    told = []
    checkpoints = Checkpoints(tmp_path, 2)
    assert checkpoints.latest(told.append) == 10
    (line,) = told
    assert "step-00000020 does not count: module-002.safetensors " in line
    assert message in line
    assert "module-001" not in line

    checkpoints.set_aside_after(10, told.append)
    aside = tmp_path / f"step-00000020.{kind}"
    assert told[1] == f"step-00000020 is now {aside.name}; going on after step 10"
    assert {path.name for path in aside.iterdir()} == left
    save(checkpoints, [make(0), make(1)], 20)
    assert checkpoints.latest(told.append) == 20
    assert len(told) == 2


@pytest.mark.parametrize("code", [errno.EACCES, errno.EIO, errno.ESTALE])
def test_what_cannot_be_read_is_not_taken_for_damaged(code, tmp_path, monkeypatch):
    """Nor does a run begin again because of it, or delete anything."""
    saved(tmp_path, 1, 10, 20)
    last, whole = module_file(tmp_path, 20, 1), Path.open

    def refuse(path, *args):
        if path == last:
            raise OSError(code, os.strerror(code), str(path))
        return whole(path, *args)

    monkeypatch.setattr(Path, "open", refuse)
    checkpoints = Checkpoints(tmp_path, 1)
    reason = re.escape(f"{last} cannot be read ({os.strerror(code)}); mend that and start again")
    for ask in (checkpoints.latest, lambda: checkpoints.load(make(0), 20)):
        with pytest.raises(UserError, match=reason):
            ask()
    checkpoints.prune(keep=1)
    assert checkpoints.steps() == [10, 20]
    monkeypatch.undo()
    last.rename(tmp_path / "away")
    assert checkpoints.latest(lambda line: None) == 10


def test_a_folder_that_cannot_be_listed_is_not_empty(tmp_path, monkeypatch):
    saved(tmp_path, 1, 10)

    def refuse(path):
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(os, "listdir", refuse)
    with pytest.raises(UserError, match=r"cannot be read \(Permission denied\)"):
        Checkpoints(tmp_path, 1).begun()


def test_a_leftover_beside_whole_files_does_no_harm(tmp_path):
    checkpoints = saved(tmp_path, 1, 10)
    module_file(tmp_path, 10, 1).with_suffix(".partial").write_bytes(b"half")
    assert checkpoints.latest() == 10


def test_setting_aside_overwrites_nothing(tmp_path):
    for _ in range(3):
        checkpoints = saved(tmp_path, 1, 10, 20)
        flip(module_file(tmp_path, 20, 1), 0.9)
        checkpoints.set_aside_after(10, lambda line: None)
    names = sorted(path.name for path in tmp_path.iterdir())
    damaged = "step-00000020.damaged"
    assert names == ["step-00000010", damaged, f"{damaged}-1", f"{damaged}-2"]


def test_without_any_sound_checkpoint_there_is_none(tmp_path, capsys):
    checkpoints = saved(tmp_path, 1, 10, 20)
    for number in (10, 20):
        flip(module_file(tmp_path, number, 1), 0.9)
    assert checkpoints.latest() is None
    told = capsys.readouterr().err.splitlines()
    assert [line[:9] for line in told] == ["warning: "] * 2
    assert "step-00000020" in told[0]
    assert "step-00000010" in told[1]


def test_an_earlier_versions_names_of_lagged_messages_are_read(tmp_path):
    """They were `feedback.awaiting` and `feedback.unheeded`."""
    checkpoints, module = Checkpoints(tmp_path, 1), make(0)
    module.lagged.awaiting.push(0, 0, torch.ones(2))
    module.lagged.pending.push(0, 0, torch.zeros(3))
    old = {
        name.replace("lagged.pending", "feedback.unheeded").replace("lagged.", "feedback."): value
        for name, value in tensors(module).items()
    }
    assert "feedback.unheeded.0.0.0" in old
    checkpoints.write(0, old, 1)
    restored = make(0, seed=9)
    checkpoints.load(restored, 1)
    assert restored.lagged.tensors().keys() == module.lagged.tensors().keys()
    assert torch.equal(next(iter(restored.lagged.pending)).tensors[0], torch.zeros(3))


def test_the_state_of_another_optimizer_is_not_taken_over(tmp_path):
    """Earlier versions did not say whose it is; what is damaged is for `load` to say."""
    checkpoints, module = Checkpoints(tmp_path, 1), make(0)
    checkpoints.write(0, tensors(module), 1, optimizer="SGD")
    with pytest.raises(UserError, match=r"module-001\.safetensors is of SGD, .* has AdamW; resume"):
        checkpoints.refuse_other_optimizer(module, 1)
    checkpoints.write(0, tensors(module), 2, optimizer="AdamW")
    checkpoints.write(0, tensors(module), 3)
    (checkpoints.at(4)).mkdir()
    for step in (2, 3, 4):
        checkpoints.refuse_other_optimizer(module, step)


@pytest.mark.parametrize(
    "name", ["../../evil", "", "a b", "newest", "12", ".hidden", "-x", "a/b", "a.b", None, 3]
)
def test_a_name_is_one_plain_word(tmp_path, name):
    with pytest.raises(UserError, match="name of a checkpoint is a word") as caught:
        Checkpoints(tmp_path / "run" / "checkpoints", 1).keep(name, 2)
    assert repr(name) in str(caught.value)
    assert not [*tmp_path.iterdir()]


@pytest.mark.parametrize("name", ["best", "epoch_3", "low-loss"])
def test_other_names_are_kept(tmp_path, name):
    Checkpoints(tmp_path, 1).keep(name, 2)
    assert (tmp_path / f"{name}.step").read_text() == "2\n"


def test_a_name_in_use_moves(tmp_path):
    checkpoints = saved(tmp_path, 1, 2, 4)
    for step in (2, 4):
        checkpoints.keep("best", step)
        assert checkpoints.named("best") == step
    checkpoints.prune(keep=1)
    assert checkpoints.steps() == [4]


@pytest.mark.parametrize("damage", [b"", b"2 and more", b"\xff\xfe", None])
def test_a_damaged_name_is_told_and_nothing_is_deleted(tmp_path, capsys, damage):
    """None stands for a folder in its place, which cannot be read."""
    checkpoints = saved(tmp_path, 1, 1, 2, 3)
    checkpoints.keep("best", 1)
    name = tmp_path / "worst.step"
    name.mkdir() if damage is None else name.write_bytes(damage)
    with pytest.raises(UserError, match=r"worst\.step is damaged or cannot be read; remove it, or"):
        checkpoints.named("best")
    checkpoints.prune(1)
    assert checkpoints.steps() == [1, 2, 3]
    assert re.fullmatch(r"warning: .*worst\.step is damaged .*\n", capsys.readouterr().err)
    name.rmdir() if damage is None else name.unlink()
    checkpoints.prune(1)
    assert checkpoints.steps() == [1, 3]


def test_a_named_step_without_its_files_is_told_as_that(tmp_path):
    checkpoints = saved(tmp_path, 1, 1)
    checkpoints.keep("best", 2)
    with pytest.raises(UserError, match=r"step-00000002, which has the name 'best', is not compl"):
        checkpoints.named("best")
    with pytest.raises(UserError, match=r"no complete checkpoint 'other'; the named ones are best"):
        checkpoints.named("other")
