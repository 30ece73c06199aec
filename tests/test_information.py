"""Runs with an information term: it trains, plans, resumes and is left behind at the end."""

import json
import shutil
import sys
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file
from torch.autograd import grad
from torch.nn import functional

from pipeline_local import cli
from pipeline_local.configfile import configfile
from pipeline_local.data.datasets import describe
from pipeline_local.errors import UserError
from pipeline_local.finished import finished
from pipeline_local.finished.exporting.export import export
from pipeline_local.finished.predictor import Predictor
from pipeline_local.learning.information import InformedHead, local_loss, parts
from pipeline_local.memory import trial
from pipeline_local.memory.dry_run import stage_bytes
from pipeline_local.placement import costs
from pipeline_local.placement.draw import draw
from pipeline_local.planning import diagnose, plan, profile
from pipeline_local.ranks.rank import RankInfo
from pipeline_local.training.train import train

BASE = {
    "model": {"name": "resnet20", "width": 4},
    "data": {"name": "digits", "batch_size": 16, "limit": 64},
    "modules": {"count": 3},
    "head": {"name": "linear"},
    "train": {"steps": 11, "microbatches": 2, "log_every": 5},
    "parallel": {"threads": 1},
}
RECONSTRUCTION = {"name": "reconstruction", "weight": [0.6, 0.2], "width": 5}
BOTH = {"weight": 0.1, "direction": "both", "every": 2}
MLP = {"name": "mlp", "hidden": 8, "depth": 3}
VIT = {
    "name": "vit",
    "patch_size": 2,
    "num_layers": 4,
    "num_heads": 2,
    "hidden_dim": 8,
    "mlp_dim": 16,
}


def parse(folder="unused", **sections):
    return configfile.parse({**BASE, "run": {"dir": str(folder)}, **sections})


def drawn(**sections):
    config = parse(**sections)
    return draw(config, describe(config.data))


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A finished run, with checkpoints at steps 7 and 11."""
    folder = tmp_path_factory.mktemp("information") / "run"
    checkpoint = {"every_steps": 7, "keep": 9}
    config = parse(folder, information=RECONSTRUCTION, reconcile=BOTH, checkpoint=checkpoint)
    train(config, RankInfo())
    return folder


def checkpoints(folder):
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("module-*"))}


def test_a_resumed_run_is_the_same_one(run, tmp_path):
    """The inputs that wait for feedback are in the checkpoint."""
    cut = tmp_path / "cut"
    shutil.copytree(run, cut)
    (cut / "summary.json").unlink()
    shutil.rmtree(cut / "checkpoints" / "step-00000011")
    state = load_file(next((cut / "checkpoints" / "step-00000007").glob("module-*1*.safetensors")))
    waiting = [name for name in state if name.startswith("lagged.awaiting.6.0.")]
    assert len(waiting) == 3, "activations, labels, input"
    config = configfile.load(cut / "config.yaml", [f"run.dir={cut}", "run.resume=true"])
    train(config, RankInfo())
    assert checkpoints(cut) == checkpoints(run)


def test_it_is_logged_and_shown(run):
    lines = map(json.loads, (run / "metrics" / "stage-0.jsonl").read_text().splitlines())
    first = next(line["modules"] for line in lines if line["event"] == "train")
    assert first["1"]["information"] > 0
    assert first["1"]["loss"] > 0.6 * first["1"]["information"], "the loss is of both"
    assert "information" not in first["3"], "the last module's head is the classifier"


def test_evaluation_and_prediction_do_not_see_it(run):
    heads = []
    facts = finished.evaluate(run, lambda rows, *_: heads.extend(row.head for row in rows))
    summary = json.loads((run / "summary.json").read_text())
    assert facts["loss"] == pytest.approx(summary["loss"], rel=1e-6)
    assert heads == ["linear + reconstruction"] * 2 + ["classifier"]
    assert Predictor(run)(torch.zeros(2, 1, 8, 8, dtype=torch.uint8)).shape == (2, 10)


def test_the_term_is_left_behind_at_export(run, tmp_path):
    export(run, tmp_path / "model.safetensors")
    names = load_file(tmp_path / "model.safetensors")
    config = configfile.load(run / "config.yaml")
    blueprint = draw(config, describe(config.data))
    blocks = [*blueprint.backbone.blocks, blueprint.backbone.classifier]
    assert {*names} == {b.prefix + name for b in blocks for name in b.module.state_dict()}


def test_diagnose_has_the_gradients_of_the_whole_local_loss(run):
    _, modules, _ = finished.load(run)
    generator = torch.Generator().manual_seed(0)
    x, labels = torch.randn(16, 1, 8, 8, generator=generator), torch.arange(16) % 10
    got = diagnose.measure(modules, [(x, labels)])
    losses, y = [], x
    for module in modules:
        inner, y = y, module.body(y)
        if isinstance(module.head, InformedHead):
            head = module.head
            target = inner.detach()
            means = target.mean((0, 2, 3), keepdim=True)
            error = (head.information.decoder(y) - target).square().mean()
            term = error / ((target - means).square().mean() + 1e-6)
            task = functional.cross_entropy(head.head(y), labels)
            losses.append(head.task_weight * task + head.weight * term)
        else:
            losses.append(functional.cross_entropy(module.head(y), labels))
    for row, module, own in zip(got, modules, losses, strict=True):
        params = list(module.body.parameters())
        vectors = [
            torch.cat([g.flatten() for g in grad(loss, params, retain_graph=True)])
            for loss in (own, losses[-1])
        ]
        wanted = functional.cosine_similarity(*vectors, dim=0).item()
        assert row.gradient == pytest.approx(wanted, abs=1e-4)


def test_a_head_starts_as_it_would_alone():
    """So that runs with and without a term can be compared."""
    alone, informed = (
        drawn(information=own).module(0, torch.device("cpu")).head for own in ({}, RECONSTRUCTION)
    )
    for a, b in zip(alone.parameters(), informed.head.parameters(), strict=True):
        assert torch.equal(a, b)


# -- planning ----------------------------------------------------------------------------------


def decoder(maps, channels, grid, factor, width=5):
    """Forward FLOPs per sample of two 3x3 convolutions."""
    return 2 * 9 * grid**2 * (maps * width + width * channels * factor**2)


def test_operations_are_counted():
    """Module 1 reconstructs 8x8 images from 4 maps, module 2 the latter from 8 maps of 4x4."""
    cuts = {"cuts": ["layer1.1", "layer2.1"]}
    plain, own = (drawn(modules=cuts, information=i) for i in ({}, RECONSTRUCTION))
    assert [len(part) for part in own.modules] == [2, 3, 5]
    before, after = costs.by_flops(plain), costs.by_flops(own)
    more = [
        after.module(k, 3, part).signal - before.module(k, 3, part).signal
        for k, part in enumerate(own.modules)
    ]
    assert more == [3 * 16 * decoder(4, 1, 8, 1), 3 * 16 * decoder(8, 4, 4, 2), 0]


def test_what_reconciliation_adds_is_counted():
    reconcile = {"weight": 0.1, "every": 1, "estimator": "finite_difference"}
    plain, own = (
        costs.by_flops(drawn(information=i, reconcile=reconcile)) for i in ({}, RECONSTRUCTION)
    )
    part = drawn().modules[1]
    a, b = plain.module(1, 3, part), own.module(1, 3, part)
    assert b.added - a.added == b.signal - a.signal > 0, "one more pass of the decoder"


@pytest.mark.parametrize("name", ["reconstruction", "contrast"])
def test_what_waits_for_feedback_is_planned(name):
    def lagged(information):
        blueprint = drawn(model=MLP, information=information, reconcile=BOTH)
        return stage_bytes(blueprint, range(3), 1).lagged

    blueprint = drawn(model=MLP)
    shapes = [blueprint.input_shapes[part.start] for part in blueprint.modules[:-1]]
    inputs = sum(4 * 8 * torch.Size(shape).numel() for shape in shapes)
    under_way = 3 * 2  # steps and microbatches
    assert lagged({"name": name}) - lagged({}) == under_way * inputs


@pytest.mark.parametrize("cuts", ["auto", "memory"])
@pytest.mark.parametrize("name", ["reconstruction", "contrast"])
def test_cuts_see_the_terms(cuts, name):
    """A term as expensive as this one moves them."""
    modules = {"count": 2, "cuts": cuts}
    own = {"name": name, "width": 400}
    assert drawn(modules=modules).modules != drawn(modules=modules, information=own).modules


def test_a_profile_measures_every_term(tmp_path):
    config = parse(information=RECONSTRUCTION, model=MLP)
    info = describe(config.data)
    output = tmp_path / "profile.json"
    profile.profile(config, info, 1, output, RankInfo())
    rows = json.loads(output.read_text())["information"]
    assert len(rows) == 2, "behind images, and behind hidden features"
    assert all(row["forward"] > 0 and row["second"] >= 0 for row in rows)
    modules = {"count": 3, "profile": str(output)}
    same = {"model": MLP, "modules": modules}
    planned = plan.draw(parse(**same, information=RECONSTRUCTION), info, 1)
    heads = json.loads(output.read_text())["heads"]
    assert planned.stages[0].modules[1].cost.signal > 2 * heads[1]["forward"]
    for other in ({"name": "reconstruction", "width": 6}, {"name": "contrast"}, {}):
        with pytest.raises(UserError, match=r"was measured with information"):
            plan.draw(parse(**same, information=other), info, 1)


# -- models ------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["reconstruction", "contrast"])
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_a_vit_learns_with_it(name, precision, tmp_path):
    config = parse(
        tmp_path / "run",
        model=VIT,
        data={"name": "synthetic", "image_size": 8, "batch_size": 32, "limit": 64},
        information={"name": name},
        train={"steps": 24, "log_every": 2, "evaluate_every": 24},
        optimizer={"name": "adamw", "lr": 0.01},
        precision=precision,
    )
    train(config, RankInfo())
    lines = (tmp_path / "run" / "metrics" / "stage-0.jsonl").read_text().splitlines()
    rows = [row["modules"] for row in map(json.loads, lines) if row["event"] == "train"]
    for number in ("1", "2"):
        losses = [row[number]["information"] for row in rows]
        assert sum(losses[-3:]) < sum(losses[:3])


def test_compiled_parts_are_the_head_and_the_term():
    blueprint = drawn(information=RECONSTRUCTION)
    blueprint = replace(blueprint, config=replace(blueprint.config, compile=True))
    module = blueprint.module(0, torch.device("cpu"))
    compiled = [part._compiled_call_impl is not None for part in parts(module.head)]
    assert compiled == [True, True]
    assert module.head._compiled_call_impl is None


# -- mistakes ----------------------------------------------------------------------------------

MINE = """
from torch import nn
from torch.nn import functional
from pipeline_local.learning.information import Information

class Means(Information):
    def __init__(self, ends, *, bias: bool = True):
        super().__init__()
        self.network = nn.Sequential(nn.Flatten(), nn.LazyLinear(ends.input_shape[0], bias=bias))

    def forward(self, y):
        return self.network(y)

    def loss(self, prediction, x, labels):
        return functional.mse_loss(prediction, x.mean((2, 3)))

class Unreduced(Means):
    def loss(self, prediction, x, labels):
        return (prediction - x.mean((2, 3))).square()

class Constant(Means):
    def loss(self, prediction, x, labels):
        return x.mean()

class Raises(Means):
    def loss(self, prediction, x, labels):
        return prediction @ x

class Text(Means):
    def forward(self, y):
        return "text" if self.training and y.device.type == "cpu" else self.network(y)

def a_head(ends):
    return nn.Linear(2, 2)
"""


@pytest.fixture
def mine(tmp_path, monkeypatch):
    (tmp_path / "mine.py").write_text(MINE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    yield
    sys.modules.pop("mine", None)


def test_a_term_of_ones_own(mine, tmp_path):
    information = {"name": "python:mine:Means", "bias": False, "weight": 2}
    few = {"optimizer": {"lr": 0.001}, "train": {"steps": 5}}
    config = parse(tmp_path / "run", information=information, reconcile=BOTH, **few)
    trial.check(draw(config, describe(config.data)))
    train(config, RankInfo())
    _, modules, _ = finished.load(tmp_path / "run")
    head = modules[0].head
    assert head.information.network[1].bias is None
    x, labels = torch.randn(4, 1, 8, 8), torch.arange(4)
    y = modules[0].body(x)
    local = local_loss(head, modules[0].read, modules[0].rules.task, y, labels, x)
    own = functional.mse_loss(head.information.network(y), x.mean((2, 3)))
    task = functional.cross_entropy(head.head(y), labels)
    assert torch.allclose(local.total, task + 2 * own)


@pytest.mark.parametrize(
    ("information", "line"),
    [
        ({"name": "reconstructoin"}, "information.name: .*did you mean 'reconstruction'"),
        ({"name": "contrast", "weight": -1}, "information.weight: should be .*got -1"),
        ({"name": "contrast", "weight": [1, 2, 3]}, "information.weight: should be "),
        ({"name": "contrast", "temperature": 0}, "information.temperature: should be greater than"),
        ({"name": "contrast", "widht": 1}, "unknown key 'information.widht'.*information.width"),
        ({"features": 3}, "unknown key 'information.features' without information.name; the keys"),
        ({"weigth": 3}, "unknown key 'information.weigth' .*did you mean 'information.weight'"),
        ({"name": "python:mine:Mean"}, "no callable 'Mean'"),
        ({"name": "python:mine:a_head"}, "must give Information, got Linear"),
        ({"name": "python:mine:Unreduced"}, r"loss must be a scalar tensor, .*got \[2, 1\]"),
        ({"name": "python:mine:Constant"}, "its loss does not depend on what it learns"),
        ({"name": "python:mine:Raises"}, "its loss fails: RuntimeError: .*mine.py line 27"),
        ({"name": "python:mine:Text"}, "information.name: the .* term of module 1 gives str"),
    ],
)
def test_a_mistake_gets_one_line(mine, information, line):
    with pytest.raises(UserError, match=line) as refused:
        trial.check(drawn(information=information))
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("sections", "line"),
    [
        ({"data": {**BASE["data"], "mixup": 0.2}}, "one class per sample"),
        ({"train": {"steps": 1, "microbatches": 16}}, "microbatches of one"),
    ],
)
def test_contrast_needs_classes_and_company(sections, line):
    with pytest.raises(UserError, match=f"information.name: contrast does not fit .*{line}"):
        drawn(information={"name": "contrast"}, **sections)


def test_the_command_line_says_it_on_one_line(tmp_path, capsys):
    path = tmp_path / "config.yaml"
    path.write_text(configfile.dump(parse(tmp_path / "run")))
    mistake = ["information.name=contrast", "data.mixup=0.1"]
    assert cli.main(["train", str(path), *mistake]) == 2
    assert len(capsys.readouterr().err.splitlines()) == 1
    assert not (tmp_path / "run").exists()
