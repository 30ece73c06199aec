"""No update that is not finite gets through; what was refused is as if it had never been asked."""

import json
import sys
import warnings
from contextlib import contextmanager, nullcontext
from pathlib import Path

import pytest
import torch
from torch import nn

from pipeline_local.config import OptimizerConfig, ReconcileConfig
from pipeline_local.configfile import configfile
from pipeline_local.engines import optimizer
from pipeline_local.errors import UserError
from pipeline_local.learning.module import LocalModule, Rules
from pipeline_local.learning.step import Step
from pipeline_local.ranks.rank import RankInfo
from pipeline_local.training.train import train as train_run

NAN, INF = float("nan"), float("inf")
OPTIMIZERS = {
    "sgd": lambda p: optimizer.build(OptimizerConfig(momentum=0.9), p),
    "plain sgd": lambda p: optimizer.build(OptimizerConfig(momentum=0.0), p),
    "adamw": lambda p: optimizer.build(OptimizerConfig(name="adamw"), p),
    "not fused": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9),
}


def make(policy="skip", name="sgd", index=1, device="cpu", **rules):
    torch.manual_seed(0)
    body = nn.Sequential(nn.Linear(7, 9), nn.BatchNorm1d(9), nn.Tanh()).to(device)
    head = nn.Linear(9, 5).to(device)
    settings = Rules(on_nan=policy, reconcile=ReconcileConfig(weight=0.5, every=1), **rules)
    return LocalModule(index, body, head, OPTIMIZERS[name], settings).to(device)


def batch(number, size=8):
    draw = torch.Generator().manual_seed(number)
    x, s = torch.randn(2, size, 7, generator=draw)
    return x, torch.randint(5, (size,), generator=draw), s


def run(module, steps, bad=(), spoil=NAN, where="input", microbatches=1):
    """Train; in the steps `bad`, one number of the input or of the signal is spoilt."""
    for number in steps:
        x, labels, s = batch(number)
        if number in bad:
            {"input": x, "signal": s}[where][-1, 3] = spoil
        step = Step(number, lr=0.1, microbatches=microbatches, reconcile=True, compare=True)
        parts = zip(*(t.chunk(microbatches) for t in (x, labels, s)), strict=True)
        for i, (x_i, labels_i, s_i) in enumerate(parts):
            module(x_i, labels_i, step, i)
            module.signal()
            module.receive(s_i)
            module.learn()
        module.update(step)
    return module


def everything(module):
    named = optimizer.tensors(module.optimizer) | dict(module.state_dict())
    return {name: value.clone() for name, value in named.items()}


def assert_same(left, right):
    assert list(left) == list(right)
    for name in left:
        assert torch.equal(left[name], right[name]), name


@pytest.mark.parametrize("where", ["input", "signal"])
@pytest.mark.parametrize("spoil", [NAN, INF, -INF])
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_a_skipped_step_leaves_no_trace(name, spoil, where):
    """Weights, statistics, momentum and step counts: also if the very first step is skipped."""
    without = run(make(name=name), [2, 3, 5])
    skipping = run(make(name=name), range(1, 6), bad=(1, 4), spoil=spoil, where=where)
    assert_same(everything(skipping), everything(without))
    assert skipping.metrics["skipped_updates"].item() == 2


def test_one_bad_microbatch_skips_the_whole_update():
    without = run(make(), [0, 2], microbatches=2)
    skipping = run(make(), range(3), bad=(1,), microbatches=2)
    assert_same(everything(skipping), everything(without))


class Counting(nn.Module):
    """It registers its buffer once it is used, as a program's own layer may do."""

    def forward(self, x):
        if not hasattr(self, "seen"):
            self.register_buffer("seen", torch.zeros(()))
        if self.training:
            self.seen += x.mean().detach()
        return x


def test_a_buffer_of_the_first_forward_pass_is_restored_from_then_on():
    def counting():
        module = make()
        module.body.insert(0, Counting())
        return module

    without = run(counting(), [0, 2])
    skipping = run(counting(), range(3), bad=(1,))
    assert_same(everything(skipping), everything(without))
    assert "body.0.seen" in everything(skipping)


def test_a_clipped_gradient_is_judged_too():
    without = run(make(clip=0.1), [0, 2])
    assert_same(everything(run(make(clip=0.1), range(3), bad=(1,))), everything(without))


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_without_nan_both_policies_give_the_same_bytes(name):
    skip, fail = run(make("skip", name), range(4)), run(make("fail", name), range(4))
    assert_same(everything(skip), everything(fail))
    assert skip.metrics["skipped_updates"] == 0
    assert "skipped_updates" not in fail.metrics
    for module in (skip, fail):
        module.guard.verify()
        module.guard.verify_weights(4)


def test_fail_names_module_and_first_step_though_steps_later_are_fine():
    module = run(make("fail"), range(5), bad=(2, 3))
    with pytest.raises(UserError, match=r"^module 2: .* not finite at step 3; lower .*skip$"):
        module.guard.verify()
    assert all(p.isfinite().all() for p in module.parameters()), "the weights are never touched"


@pytest.mark.parametrize("policy", ["fail", "skip"])
def test_weights_that_a_finite_gradient_has_spoilt_are_refused(policy):
    """Too long a step: the gradient is finite, the weight is not."""
    module = make(policy, "not fused")
    x, labels, s = batch(0)
    step = Step(0, lr=INF, compare=True)
    module(x, labels, step)
    module.signal()
    module.receive(s)
    module.learn()
    module.update(step)
    module.guard.verify()
    with pytest.raises(UserError, match=r"^module 2: a weight is not finite after step 1; lower"):
        module.guard.verify_weights(1)


def test_infinite_buffers_are_fine():
    """As those of an attention mask are."""
    module = make()
    module.body.register_buffer("mask", torch.tensor([0.0, -INF]))
    module.guard.verify_weights(1)


@contextmanager
def no_waiting(device):
    """The host does not wait for the device in here."""
    if device.type == "cuda":
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that it is a prototype
            torch.cuda.set_sync_debug_mode("error")
        try:
            yield
        finally:
            torch.cuda.set_sync_debug_mode("default")
    else:  # a simulated one counts
        before = torch.get_device_module(device).waits()
        yield
        assert torch.get_device_module(device).waits() == before


@pytest.mark.skipif(not torch.accelerator.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("name", ["sgd", "adamw"])
@pytest.mark.parametrize("policy", ["fail", "skip"])
def test_the_host_never_waits_for_the_verdict(policy, name):
    device = torch.accelerator.current_accelerator()
    module = make(policy, name, index=0, device=device)
    x, labels, _ = (t.to(device) for t in batch(0))
    for number in range(3):
        step = Step(number, lr=0.1)
        module(x, labels, step)
        module.signal()
        module.learn()
        with no_waiting(device) if number == 2 else nullcontext():
            module.update(step)


# -- a whole run: a block in the middle that now and then gives NaN -----------------------------

TRAP = """
import torch
from torch import nn

class Trap(nn.Module):
    def forward(self, x):
        return x * torch.where(x[0, 0].detach() > {threshold}, float('nan'), 1.0)

def build(num_classes, image_shape):
    return [
        ("one", nn.Sequential(nn.Flatten(), nn.Linear(64, 16), nn.BatchNorm1d(16))),
        ("two", nn.Sequential(Trap(), nn.Linear(16, 16), nn.BatchNorm1d(16))),
        ("three", nn.Sequential(nn.Linear(16, 16), nn.BatchNorm1d(16))),
        ("four", nn.Sequential(nn.Linear(16, 16), nn.Tanh())),
        ("classifier", nn.Linear(16, num_classes)),
    ]
"""


def train(folder, rank_info, policy, threshold=0.8, **changes):
    (folder / "trap.py").write_text(TRAP.format(threshold=threshold))
    tree = {
        "model": {"name": "python:trap:build"},
        "modules": {"count": 4},
        "head": {"name": "linear"},
        "reconcile": {"weight": 0.1, "every": 1},
        "data": {"name": "digits", "batch_size": 32},
        "train": {"steps": 20, "log_every": 7, "evaluate_every": 50, "on_nan": policy},
        "parallel": {"threads": 1},
        "run": {"dir": str(folder / f"{rank_info.world_size}-{policy}-{threshold}")},
    }
    for key, value in changes.items():
        tree[key] = tree.get(key, {}) | value
    train_run(configfile.parse(tree), rank_info)
    return Path(tree["run"]["dir"])


def stage(rank_info, *arguments):
    return train(arguments[0], rank_info, *arguments[1:])


def tensors(run):
    return [path.read_bytes() for path in sorted(run.glob("checkpoints/step-*20/*"))]


@pytest.fixture
def trap(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    yield tmp_path
    sys.modules.pop("trap", None)


def last_skipped(run):
    lines = [json.loads(x) for p in run.glob("metrics/*") for x in p.read_text().splitlines()]
    rows = [x["modules"] for x in lines if x["event"] == "train" and x["step"] == 20]
    return {int(k): row["skipped_updates"] for part in rows for k, row in part.items()}


def test_each_module_decides_for_itself_on_any_number_of_stages(trap, run_ranks, capsys):
    single = train(trap, RankInfo(), "skip")
    skipped = last_skipped(single)
    assert skipped[1] == 0, "upstream of the trap, nothing is wrong"
    assert 0 < skipped[2] < 20
    assert skipped[2] == skipped[3] == skipped[4], "what is sent downstream is judged there"
    assert f"module 2: {skipped[2]:.0f} updates were skipped" in capsys.readouterr().err
    assert len(tensors(single)) == 4
    for size in (2, 4):
        runs = run_ranks(stage, size, trap, "skip")
        assert tensors(runs[0]) == tensors(single)
        assert last_skipped(runs[0]) == skipped


def test_without_nan_a_run_is_the_same_with_either_policy(trap):
    runs = [train(trap, RankInfo(), policy, threshold=1e9) for policy in ("fail", "skip")]
    assert tensors(runs[0]) == tensors(runs[1])


# -- a whole run: more than float16 can hold, in front of a bounded activation function --------

LOUD = """
from torch import nn

class Loud(nn.Module):
    def forward(self, x):
        return 1e6 * x if self.training in {when} else x

def build(num_classes, image_shape):
    return [
        ("one", nn.Sequential(nn.Flatten(), nn.Linear(64, 16), Loud())),
        ("two", nn.Sequential(nn.Tanh(), nn.Linear(16, 16))),
        ("classifier", nn.Linear(16, num_classes)),
    ]
"""
HINT = r"set parallel\.wire_dtype=bfloat16 \(activations beyond 65504 overflow float16\), lower opt"


@pytest.fixture
def loud(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])

    def run(policy, narrow, when=(True, False)):
        (tmp_path / "loud.py").write_text(LOUD.format(when=when))
        return train(
            tmp_path,
            RankInfo(),
            policy,
            model={"name": "python:loud:build"},
            modules={"count": 2},
            parallel={"threads": 1, "wire_dtype": narrow},
            optimizer={"lr": 1e-9},
            reconcile={"weight": 0.0},
            run={"dir": f"{policy}-{narrow}"},
        )

    yield run
    sys.modules.pop("loud", None)


def test_overflow_on_the_wire_is_named(loud):
    """Tanh of infinity is one: nothing else would notice."""
    loud("fail", "bfloat16")
    with pytest.raises(UserError, match=rf"^module 2: the loss .* not finite at step 1; {HINT}"):
        loud("fail", "float16")


def test_overflow_on_the_wire_is_skipped(loud):
    assert last_skipped(loud("skip", "float16")) == {1: 0, 2: 20}


def test_overflow_in_an_evaluation_is_named(loud):
    with pytest.raises(UserError, match=rf"^module 2: the loss on the test set is nan .*; {HINT}"):
        loud("fail", "float16", when=(False,))


def test_fail_stops_before_a_checkpoint_is_written(trap):
    """The trap snaps between two logged steps; the checkpoints before it stay."""
    with pytest.raises(UserError, match=r"^module [234]: .* not finite at step \d+; "):
        train(trap, RankInfo(), "fail", checkpoint={"every_steps": 1, "keep": 99})
    (run,) = trap.glob("1-fail-*")
    assert not (run / "summary.json").exists()
    assert not tensors(run)
