"""What is true in training only: found by a trial step, named in one line."""

import sys

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from pipeline_local import cli
from pipeline_local.configfile import configfile
from pipeline_local.errors import UserError
from pipeline_local.learning.estimators import Shift
from pipeline_local.memory import trial
from pipeline_local.models.registry import MODELS
from tests.memory.trials import layers, tried


class Block(nn.Module):
    """Linear in evaluation; in training, what `train` says."""

    def __init__(self, train, width=12):
        super().__init__()
        self.linear, self.train_as = nn.Linear(width, 12), train

    def forward(self, x):
        return self.train_as(self.linear, x) if self.training else self.linear(x.flatten(1))


def sometimes(one, other):
    return one if torch.rand(()) < 0.5 else other


def keeps_positive(layer, x):
    y = layer(x)
    return y + y[y > 0].mean()


def reentrant(layer, x):
    return checkpoint(layer, x.flatten(1), use_reentrant=True)


REFUSED = {
    "tuple": (lambda layer, x: (layer(x), x), "gives tuple while training"),
    "none": (lambda layer, x: None, "gives NoneType while training"),
    "whole numbers": (lambda layer, x: layer(x).long(), r"gives torch.int64 while training"),
    "shape": (lambda layer, x: layer(x)[:, :5], r"gives \[\d+, 5\] while training"),
    "batch": (lambda layer, x: layer(x)[1:], r"gives \[\d+, 12\] while training"),
    "dtype": (lambda layer, x: layer(x).double(), "gives torch.float64 while training and"),
    "raises": (lambda layer, x: 1 / 0, "ZeroDivisionError.* line"),
    "backward": (
        lambda layer, x: layer(x).relu().add_(1).exp().relu_().square().sub_(1) * x.exp_(),
        "inplace operation",
    ),
    "sometimes": (lambda layer, x: sometimes(layer(x), (x,)), "gives tuple while training"),
    "reentrant": (reentrant, "reentrant checkpointing"),
}
TRAINED = {
    "asks for values": lambda layer, x: layer(x) * float(x.abs().max()),
    "sometimes skipped": lambda layer, x: sometimes(layer(x), x),
    "skipped": lambda layer, x: x,
    "without gradients": lambda layer, x: torch.no_grad()(layer)(x),
    "chosen by values": keeps_positive,
    "checkpoint": lambda layer, x: checkpoint(layer, x, use_reentrant=False),
}


@pytest.mark.parametrize("cuts", [["last"], "auto"])
@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_trained_is_named(config, name, cuts):
    train, message = REFUSED[name]
    if cuts == ["last"]:
        cuts = ["middle"]
    wrong = config(lambda: Block(train), modules={"count": 2, "cuts": cuts})
    with pytest.raises(UserError, match=rf"^model.name: block 'middle' .*{message}") as caught:
        tried(wrong)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", TRAINED)
def test_what_can_be_trained_is_not_refused(config, name):
    tried(config(lambda: Block(TRAINED[name])))


def test_a_real_step_finds_labels_of_earlier_steps(config):
    """Not memory as it was, whose numbers are no classes: here it is filled with the worst."""

    def build(num_classes):
        first, _, last = layers(None, num_classes)
        asks = Block(TRAINED["asks for values"])
        return [first, ("asks", asks), ("later", nn.Linear(12, 12)), last]

    own = config(
        None,
        build=build,
        modules={"count": 2, "cuts": ["later"]},
        reconcile={"weight": 0.1, "direction": "both", "every": 1},
    )
    torch.use_deterministic_algorithms(True)
    try:
        tried(own)
    finally:
        torch.use_deterministic_algorithms(False)


def test_a_reentrant_checkpoint_of_the_input_itself(config):
    def build(num_classes):
        first, *others = layers(nn.Linear(12, 12), num_classes)
        return [(first[0], Block(reentrant, 64)), *others]

    with pytest.raises(UserError, match=r"block 'first' uses reentrant"):
        tried(config(None, build=build))


@pytest.mark.parametrize("name", ["LBFGS", "SparseAdam"])
def test_an_optimizer_that_cannot_step(config, name):
    own = {"name": f"python:torch.optim:{name}", "lr": 0.1}
    with pytest.raises(UserError, match=rf"^optimizer.name: the optimizer .*:{name} fails in a"):
        tried(config(lambda: nn.Linear(12, 12), optimizer=own))


class Unsure(Shift):
    """It cannot estimate, or not even be made."""

    moves = False

    def __init__(self, *, size=4):
        super().__init__()
        if size != 4:
            raise ValueError("size must be 4")

    def added(self, at):
        raise RuntimeError("no idea")


def test_an_estimator_of_ones_own_that_fails(config):
    own = {"weight": 0.1, "estimator": f"python:{__name__}:Unsure"}
    with pytest.raises(UserError, match=r"^reconcile.estimator: the estimator .*: no idea, "):
        tried(config(lambda: nn.Linear(12, 12), reconcile=own))
    with pytest.raises(UserError, match=r"^reconcile.estimator: .* refuses .*size must be 4\);"):
        config(lambda: nn.Linear(12, 12), reconcile={**own, "size": 3})


SIZES = [{"data": {"name": "digits", "batch_size": 1}}, {"train": {"steps": 4, "microbatches": 8}}]


@pytest.mark.parametrize("sizes", SIZES)
def test_norms_of_one_sample(config, sizes):
    normed = config(lambda: nn.Sequential(nn.Linear(12, 12), nn.BatchNorm1d(12)), **sizes)
    with pytest.raises(UserError, match=r"'middle' .*more than 1 value.* raise data.batch_size"):
        tried(normed)
    own = configfile.parse(
        {
            "model": {"name": "mlp"},
            "data": {"name": "digits", "batch_size": 8},
            "modules": {"count": 2},
            "head": {"name": "mlp"},
            "train": {"steps": 4},
            **sizes,
        }
    )
    with pytest.raises(
        UserError, match=r"^head.name: the mlp head of module 1 .*more than 1 value"
    ):
        tried(own)


def test_what_comes_with_the_package_is_not_tried(monkeypatch):
    monkeypatch.setattr(trial, "_failure", None)
    tried(
        configfile.parse(
            {"model": {"name": "mlp"}, "data": {"name": "digits"}, "train": {"steps": 4}}
        )
    )
    monkeypatch.setitem(MODELS._entries, "theirs", lambda num_classes, image_shape: None)
    assert not MODELS.comes_with_us("theirs")


def test_train_and_plan_say_the_same_line_and_leave_nothing(tmp_path, monkeypatch, capsys):
    (tmp_path / "tuples.py").write_text(
        "from torch import nn\n"
        "class Pair(nn.Linear):\n"
        "    def forward(self, x):\n"
        "        y = super().forward(x)\n"
        "        return (y, x) if self.training else y\n"
        "def net(num_classes, image_shape):\n"
        "    first = nn.Sequential(nn.Flatten(), nn.Linear(64, 12))\n"
        "    return [first, Pair(12, 12), nn.Linear(12, num_classes)]\n"
    )
    (tmp_path / "c.yaml").write_text(
        "{model: {name: 'python:tuples:net'}, data: {name: digits, batch_size: 64},"
        " modules: {count: 2}, train: {steps: 2}, run: {dir: out}, parallel: {threads: 1}}"
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    said = []
    for command in ("train", "plan"):
        assert cli.main([command, "c.yaml"]) == 2
        said.append(capsys.readouterr().err)
    sys.modules.pop("tuples", None)
    assert said[0] == said[1]
    assert said[0].count("\n") == 1
    assert not (tmp_path / "out").exists()
