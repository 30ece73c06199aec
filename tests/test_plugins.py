"""One of each from outside the package: the entries of docs/how-to/extend.md, in one file.

They train on one and two stages, plan, profile, diagnose, resume, evaluate and export, and every
mistake in them gets one line.
"""

import importlib
import json
import re
import shutil
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch.nn import functional

from pipeline_local import cli
from pipeline_local.configfile import configfile
from pipeline_local.data.datasets import describe
from pipeline_local.errors import UserError
from pipeline_local.finished import finished
from pipeline_local.finished.exporting.export import export
from pipeline_local.learning.tasks import Classification
from pipeline_local.placement.draw import draw
from pipeline_local.planning import alternatives, diagnose, plan, profile
from pipeline_local.ranks.rank import RankInfo
from pipeline_local.training.train import train
from tests.forked import Forked

PAGE = Path(__file__).parent.parent / "docs" / "how-to" / "extend.md"
LONGEST_BLOCK = 15
"""Lines of code that one entry may take."""
SMALL = ["data.limit=320", "reconcile.direction=both", "checkpoint.keep=9"]
GAMMA = 1.5
WRONG = """
import torch
from torch import nn
from torch.nn import functional

def one_too_many(site):
    return nn.Sequential(nn.Flatten(), nn.LazyLinear(11))

def one_too_wide(site):
    return nn.Sequential(nn.Flatten(), nn.Linear(33, 10))

def broken(site):
    return site.colour

def text(site):
    return "linear"

from pipeline_local.learning.tasks import Classification

class PerSample(Classification):
    def loss(self, outputs, labels):
        return functional.cross_entropy(outputs, labels, reduction="none")

class Raises(Classification):
    def loss(self, outputs, labels):
        return outputs @ labels

class Constant(Classification):
    def loss(self, outputs, labels):
        return labels.float().mean()

def no_params(lr: float):
    return torch.optim.SGD([], lr=lr)

def no_optimizer(params, lr: float):
    return list(params)

class Unlabelled:
    classes = ("a", "b")
    def __init__(self, root, split): pass
    def __len__(self): return 64
    def __getitem__(self, index): return torch.zeros(1, 8, 8, dtype=torch.uint8), 0

def no_factor(step, num_steps):
    return "half"

def no_estimator():
    return 5

def no_transport(group, peer, device):
    return 5
"""


def blocks(language):
    fenced = re.findall(r"^```(\w+)\n(.*?)^```$", PAGE.read_text(), re.S | re.M)
    return [text for name, text in fenced if name == language]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Where a user works, with all blocks of the page in one file."""
    path = tmp_path_factory.mktemp("user")
    (path / "mine.py").write_text("\n\n".join(blocks("python")))
    (path / "wrong.py").write_text(WRONG)
    (configuration,) = blocks("yaml")
    (path / "mine.yaml").write_text(configuration)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(path)
        patch.setattr(sys, "path", [str(path), *sys.path])
        yield path
    for name in ("mine", "wrong"):
        sys.modules.pop(name, None)


@pytest.fixture(scope="module")
def one_stage(folder):
    """The run folder of a run on one stage."""
    train(load(folder), RankInfo())
    return folder / "runs" / "mine"


def load(folder, *overrides):
    return configfile.load(folder / "mine.yaml", [*SMALL, *overrides])


def checkpoints(run):
    return {str(path.relative_to(run)): path.read_bytes() for path in sorted(run.rglob("module-*"))}


def train_rank(rank_info, config):
    """One rank; gives how many messages its transport has sent."""
    train(config, rank_info)
    return len(importlib.import_module("mine").Counting.sent)


def test_each_takes_a_few_lines():
    entries = [text for text in blocks("python") if not text.startswith("import")]
    assert len(entries) == 9
    assert max(len(text.splitlines()) for text in entries) <= LONGEST_BLOCK


def test_the_placement_changes_nothing(folder, one_stage, run_ranks):
    sent = run_ranks(train_rank, 2, load(folder, "run.dir=runs/two"))
    assert checkpoints(folder / "runs" / "two") == checkpoints(one_stage)
    assert len(checkpoints(one_stage)) == 4 * 3, "modules, and steps 5, 10 and 12"
    down = 12 * 2 + (12 // 2) + 2 * 3  # activations, labels; signals; an evaluation
    assert sent[0] > down
    assert 0 < sent[1] < sent[0], "lagged messages only"


def test_an_information_term_of_ones_own(folder, run_ranks):
    own = "information={name: 'python:mine:Means', bias: false, weight: [1, 0.5]}", "train.steps=4"
    train(load(folder, *own, "run.dir=runs/means"), RankInfo())
    run_ranks(train_rank, 2, load(folder, *own, "run.dir=runs/means-two"))
    assert checkpoints(folder / "runs" / "means-two") == checkpoints(folder / "runs" / "means")
    with pytest.raises(UserError, match="with another information; resume it as it was"):
        train(load(folder, own[1], "run.dir=runs/means", "run.resume=true"), RankInfo())


def test_a_resumed_run_is_the_same_one(folder, one_stage, run_ranks):
    cut = folder / "runs" / "cut"
    shutil.copytree(one_stage, cut)
    (cut / "summary.json").unlink()
    for step in (10, 12):
        shutil.rmtree(cut / "checkpoints" / f"step-{step:08d}")
    run_ranks(train_rank, 2, load(folder, "run.dir=runs/cut", "run.resume=true"))
    assert checkpoints(cut) == checkpoints(one_stage)


@pytest.mark.parametrize("other", ["task.gamma=2.5", "task={name: classification}", "head.width=9"])
def test_a_run_keeps_its_entries(folder, one_stage, other):
    what = "task" if "task" in other else "head"
    with pytest.raises(UserError, match=f"with another {what}; resume it as it was"):
        train(load(folder, other, "run.resume=true"), RankInfo())


@pytest.fixture
def as_configured(monkeypatch):
    """Plans leave out what other numbers of microbatches take; each is a dry run of all modules."""
    monkeypatch.setattr(alternatives, "stage_peaks", lambda placement, _: [0] * 2)


def test_the_plan_asks_the_entries(folder, as_configured):
    config = load(folder, "reconcile.direction=downstream")
    planned = plan.draw(config, describe(config.data), 2)
    first, second = planned.stages[0].modules
    batch, width, hidden, classes = 32, 32, 8, 10
    head = 2 * batch * (width * hidden + hidden * classes)  # FLOPs of a forward pass
    body = 2 * batch * width * width
    assert second.cost.signal == 3 * head
    assert second.cost.added == 2 * 2 * 3 * (body + head) / 2, "two steps, each other step"
    assert first.cost.added == 0
    numbers = 64 * width + width + (width + 1) * hidden + (hidden + 1) * classes
    assert first.memory.parameters == first.memory.optimizer == 4 * numbers
    cheap = load(folder, "reconcile.direction=downstream", "reconcile.steps=[0.03]")
    one = plan.draw(cheap, describe(cheap.data), 2).stages[0].modules[1]
    assert one.cost.added == second.cost.added / 2


def test_a_profile_is_of_these_options(folder, as_configured):
    config, output = load(folder), folder / "profile.json"
    info = describe(config.data)
    profile.profile(config, info, 1, output, RankInfo())
    heads = json.loads(output.read_text())["heads"]
    assert [row["end"] for row in heads] == [1, 2, 3]
    assert all(row["forward"] > 0 for row in heads)
    planned = plan.draw(load(folder, f"modules.profile={output}"), info, 2)
    assert planned.unit == "seconds"
    assert planned.seconds > 0
    for other in ("task.gamma=2", "head.width=9", "reconcile.steps=[0.1]", "optimizer.memory=0.5"):
        section = other.partition(".")[0]
        with pytest.raises(UserError, match=f"was measured with {section}="):
            plan.draw(load(folder, f"modules.profile={output}", other), info, 2)


def focal(outputs, labels):
    """By its formula: -(1 - p)^gamma log p, p of the right class."""
    p = outputs.softmax(1)[torch.arange(len(labels)), labels]
    return (-((1 - p) ** GAMMA) * p.log()).mean()


def by_hand(modules, x, labels, loss):
    """Of each body: the cosine of its local gradient with that of the last module's loss."""
    bodies = [list(module.body.parameters()) for module in modules]
    losses, y = [], x
    for module in modules:
        y = module.body(y)
        losses.append(loss(module.head(y), labels))

    def gradient(of, params):
        found = torch.autograd.grad(of, params, retain_graph=True)
        return torch.cat([g.flatten() for g in found])

    return [
        functional.cosine_similarity(gradient(own, params), gradient(losses[-1], params), dim=0)
        for own, params in zip(losses, bodies, strict=True)
    ]


def test_diagnose_has_the_gradients_of_the_own_loss(one_stage, capsys):
    _, modules, _ = finished.load(one_stage)
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(32, 1, 8, 8, generator=generator)
    labels = torch.randint(10, (32,), generator=generator)
    got = torch.tensor([row.gradient for row in diagnose.measure(modules, [(x, labels)])])
    wanted = torch.stack(by_hand(modules, x, labels, focal))
    assert torch.allclose(got, wanted, atol=1e-4)
    other = torch.stack(by_hand(modules, x, labels, functional.cross_entropy))
    assert not torch.allclose(got, other, atol=1e-3)
    rows = diagnose.diagnose(one_stage, 1, None)
    assert [row.module for row in rows] == [1, 2, 3, 4]
    assert "local" in capsys.readouterr().out


def test_an_evaluation_has_the_own_loss(folder, one_stage):
    facts = finished.evaluate(one_stage, lambda *_: None)
    summary = json.loads((one_stage / "summary.json").read_text())
    assert facts["loss"] == pytest.approx(summary["loss"], rel=1e-6)
    blueprint, modules, _ = finished.load(one_stage)
    data = importlib.import_module("mine").Digits(None, "test", invert=True)
    x = (data.images / 255 - blueprint.info.mean[0]) / blueprint.info.std[0]
    with torch.no_grad():
        for module in modules:
            x = module.body(x)
        loss = focal(modules[-1].head(x), data.labels)
    assert facts["loss"][-1] == pytest.approx(loss.item(), rel=1e-4)


def test_a_run_is_exported(folder, one_stage):
    export(one_stage, folder / "mine.safetensors")
    state = load_file(folder / "mine.safetensors")
    assert state["block0.1.weight"].shape == (32, 64)
    assert state["block4.bias"].shape == (10,)


# -- mistakes ----------------------------------------------------------------------------------

RATE = "optimizer={name: 'python:wrong:%s', lr: 0.1}"


def read(folder, override):
    """As a command does before it begins."""
    config = load(folder, override)
    draw(config, describe(config.data))


@pytest.mark.parametrize(
    ("override", "line"),
    [
        ("head.widht=3", "unknown key 'head.widht' .* did you mean 'head.width'"),
        ("head.width=0", "head.width: should be greater than or equal to 1, got 0"),
        ("task.gama=1", "unknown key 'task.gama' .* did you mean 'task.gamma'"),
        ("task.gamma=two", "task.gamma: should be a number, got 'two'"),
        ("reconcile.steps=3", "reconcile.steps: should be a list, got 3"),
        ("data.inverse=true", "unknown key 'data.inverse' .* did you mean 'data.invert'"),
        ("optimizer.memory=[1]", r"optimizer.memory: should be a number, got \[1\]"),
        ("parallel.least=some", "parallel.least: should be a whole number, got 'some'"),
        ("optimizer.schedule=python:mine:thirds", "module 'mine' has no callable 'thirds'"),
        ("head={name: 'python:wrong:one_too_many'}", r"gives \[11\] per sample instead of \[10\]"),
        ("head={name: 'python:wrong:one_too_wide'}", "head.name: .* does not fit behind block"),
        ("head={name: 'python:wrong:broken'}", r"cannot be made .*'colour', wrong.py line 13"),
        ("head={name: 'python:wrong:text'}", "must give Module, got 'linear'"),
        ("task={name: 'python:wrong:PerSample'}", r"loss must be a scalar tensor, .* got \[2\]"),
        ("task={name: 'python:wrong:Raises'}", "its loss fails: RuntimeError: .*wrong.py line 26"),
        ("task={name: 'python:wrong:Constant'}", "its loss does not depend on the outputs"),
        ("task={name: 'python:wrong:text'}", "is called with num_classes, label_shape by name"),
        (RATE % "no_params", "is called with params by name, and does not take params"),
        (RATE % "no_optimizer", "optimizer.name: .* must give Optimizer, got"),
        ("data={name: 'python:wrong:Unlabelled'}", "got Unlabelled without labels; add what it"),
        ("optimizer.schedule=python:wrong:no_factor", "must give float or int, got 'half'"),
        ("reconcile={estimator: 'python:wrong:no_estimator'}", "must give Estimator, got 5"),
    ],
)
def test_a_mistake_gets_one_line(folder, override, line):
    with pytest.raises(UserError) as refused:
        read(folder, override)
    assert re.search(line, str(refused.value)), refused.value
    assert "\n" not in str(refused.value)


def test_a_transport_that_is_none_gets_one_line(folder, tmp_path):
    parallel = "parallel={backend: 'python:wrong:no_transport', threads: 1}"
    output = tmp_path / "output"
    ranks = Forked(2, ["train", "mine.yaml", *SMALL, parallel, "run.dir=runs/none"], output)
    assert 2 in ranks.ends()
    lines = output.read_text()
    assert "parallel.backend: python:wrong:no_transport must give P2P, got 5" in lines
    assert "Traceback" not in lines


def test_the_command_line_says_it_on_one_line(folder, capsys):
    assert cli.main(["plan", "mine.yaml", "task={name: 'python:wrong:PerSample'}"]) == 2
    assert len(capsys.readouterr().err.splitlines()) == 1


def test_a_subclass_without_a_loss_of_its_own_is_evaluated_as_before():
    """Padding counts nowhere, label smoothing is no part of it."""

    class Named(Classification):
        metric = "hits"

    outputs = torch.randn(3, 4, generator=torch.Generator().manual_seed(0))
    labels = torch.tensor([0, 1, -100])
    got = Named(4, label_smoothing=0.5).evaluate(outputs, outputs, labels, 1, 3)
    assert got.loss == functional.cross_entropy(outputs[:2], labels[:2], reduction="sum")
    assert got.count == 2
