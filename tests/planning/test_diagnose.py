"""Local against global gradients: what is known beforehand, and an independent computation."""

import json
from dataclasses import asdict

import pytest
import torch
from torch import nn

from pipeline_local.cli import main
from pipeline_local.configfile import configfile
from pipeline_local.data.images.datasets import describe
from pipeline_local.learning.module import LocalModule
from pipeline_local.learning.rules import Rules
from pipeline_local.learning.tasks import Classification
from pipeline_local.learning.wire_format import WireFormat
from pipeline_local.placement.draw import draw as draw_blueprint
from pipeline_local.planning import diagnose
from pipeline_local.ranks.rank import RankInfo
from pipeline_local.training.train import train

TREE = {
    "model": {"name": "resnet20", "width": 4},
    "data": {"name": "digits", "batch_size": 16},
    "head": {"name": "conv"},
    "reconcile": {"weight": 0.1},
    "parallel": {"threads": 1},
    "train": {"steps": 3, "microbatches": 2},
}
VIT = {"patch_size": 4, "num_layers": 3, "num_heads": 2, "hidden_dim": 16, "mlp_dim": 32}


def draw(count, **sections):
    config = configfile.parse({**TREE, "modules": {"count": count}, **sections})
    blueprint = draw_blueprint(config, describe(config.data))
    modules = [blueprint.module(k, torch.device("cpu")) for k in range(count)]
    generator = torch.Generator().manual_seed(0)
    images = [torch.randn(8, *blueprint.info.sample_shape, generator=generator) for _ in range(2)]
    return modules, [(x, torch.arange(8)) for x in images]


def test_one_module_is_backpropagation():
    (row,) = diagnose.measure(*draw(1))
    assert (row.module, row.gradient) == (1, 1)
    assert row.signal == pytest.approx(1)
    assert row.discord is None
    assert row.cosine is None


def test_the_last_modules_loss_is_the_global_one():
    first, *_, last = diagnose.measure(*draw(3))
    assert (last.module, last.gradient) == (3, 1)
    assert last.signal == pytest.approx(1)
    assert abs(first.gradient) < 0.9
    assert abs(first.signal) < 0.9
    assert last.discord > 0
    assert -1 < last.cosine < 1


def plain(index, body, head):
    def optimizer(params):
        return torch.optim.SGD(params, lr=1.0)

    rules = Rules(
        task=Classification(3, label_smoothing=0.1), wire_format=WireFormat(torch.float64)
    )
    return LocalModule(index, body, head, optimizer, rules)


def two_linear_modules():
    torch.manual_seed(0)
    layers = [nn.Linear(5, 4), nn.Linear(4, 3), nn.Linear(4, 6), nn.Linear(6, 3)]
    a, b, c, d = (layer.double() for layer in layers)
    batches = [(torch.randn(7, 5).double(), torch.randint(3, (7,))) for _ in range(2)]
    return [plain(0, a, b), plain(1, c, d)], batches


def smoothed_loss(logits, labels):
    targets = 0.9 * nn.functional.one_hot(labels, 3) + 0.1 / 3
    return -(targets * logits.log_softmax(1)).sum(1).mean()


def by_hand(modules, x, labels):
    """(gradient, signal) of module 1 and (discord, cosine) of module 2, module by module."""
    (a, b), (c, d) = ((m.body, m.head) for m in modules)
    y = a(x)
    local, s = torch.autograd.grad(smoothed_loss(b(y), labels), [a.weight, y], retain_graph=True)
    local_bias = s.sum(0)
    between = y.detach().requires_grad_()
    (g,) = torch.autograd.grad(smoothed_loss(d(c(between)), labels), between)
    true, true_bias = g.T @ x, g.sum(0)  # through a linear layer, without autograd
    u = torch.cat([local.flatten(), local_bias])
    v = torch.cat([true.flatten(), true_bias])
    rows = torch.nn.functional.cosine_similarity(g, s, dim=1).mean().item()
    discord = ((len(x) * (g - s)) ** 2).sum(1).mean().item()
    return (u @ v / (u.norm() * v.norm())).item(), rows, discord


def test_two_linear_modules_against_an_independent_computation():
    modules, batches = two_linear_modules()
    first, second = diagnose.measure(modules, batches)
    expected = torch.tensor([by_hand(modules, *batch) for batch in batches]).mean(0).tolist()
    assert first.gradient == pytest.approx(expected[0])
    assert first.signal == pytest.approx(expected[1])
    assert second.cosine == pytest.approx(expected[1]), "between two modules, g is the global one"
    assert second.discord == pytest.approx(expected[2])
    assert second.gradient == 1


def test_neighbours_that_agree_follow_the_global_gradient():
    """The first head is the second module itself: then local learning is backpropagation."""
    modules, batches = two_linear_modules()
    first, second = modules
    copy = plain(0, first.body, nn.Sequential(second.body, second.head))
    rows = diagnose.measure([copy, second], batches)
    assert rows[0].gradient == pytest.approx(1)
    assert rows[0].signal == pytest.approx(1)
    assert rows[1].discord == pytest.approx(0, abs=1e-20)


def test_a_body_without_parameters_has_no_gradient_to_compare():
    modules, batches = two_linear_modules()
    nothing = plain(0, nn.Identity(), nn.Linear(5, 3).double())
    rows = diagnose.measure([nothing, modules[0]], batches)
    assert rows[0].gradient is None
    assert -1 <= rows[0].signal <= 1


def test_a_vanishing_gradient_has_cosine_zero():
    modules, batches = two_linear_modules()
    nn.init.zeros_(modules[1].head.weight)
    rows = diagnose.measure(modules, batches)
    assert [row.gradient for row in rows] == [0, 0]
    assert [row.signal for row in rows] == [0, 0]


def test_tiny_gradients_keep_their_direction():
    """Of samples that are certain: squares of these vanish in float32."""
    modules, batches = two_linear_modules()
    modules = [plain(m.index, m.body.float(), m.head.float()) for m in modules]
    labels = torch.zeros(7, dtype=torch.int64)
    for module in modules:
        module.rules = Rules()
        with torch.no_grad():
            module.head.bias.copy_(torch.tensor([50.0, 0.0, 1.0]))
    rows = diagnose.measure(modules, [(x.float(), labels) for x, _ in batches])
    assert rows[-1].gradient == pytest.approx(1)
    assert rows[-1].signal == pytest.approx(1, abs=1e-4)
    assert all(abs(row.signal) <= 1.0001 for row in rows)
    assert abs(rows[1].cosine) <= 1.0001


def snapshot(modules):
    return [
        (value.clone(), value.requires_grad)
        for module in modules
        for value in module.state_dict(keep_vars=True).values()
    ]


def test_modules_are_left_as_they_were():
    modules, batches = draw(3)
    modules[1].eval()
    before, modes = snapshot(modules), [[m.training for m in k.modules()] for k in modules]
    diagnose.measure(modules, batches)
    for (a, trains), (b, trained) in zip(snapshot(modules), before, strict=True):
        assert torch.equal(a, b)
        assert trains == trained
    assert [[m.training for m in k.modules()] for k in modules] == modes
    assert all(p.grad is None for k in modules for p in k.parameters())
    norms = [m for k in modules for m in k.modules() if hasattr(m, "running_mean")]
    assert norms
    assert all(m.momentum == 0.1 and m.num_batches_tracked is not None for m in norms)


def test_recomputed_activations_give_the_same():
    modules, batches = draw(2, modules={"count": 2, "recompute": True})
    assert all(module.body.recompute for module in modules)
    for again, kept in zip(
        diagnose.measure(modules, batches), diagnose.measure(*draw(2)), strict=True
    ):
        assert asdict(again) == pytest.approx(asdict(kept))


def test_compiled_blocks_run_uncompiled():
    """Their activations would be gone after the first of the two backward passes."""

    def refuse(graph, inputs):
        raise AssertionError("compiled")

    modules, batches = draw(2)
    expected = diagnose.measure(modules, batches)
    for module in modules:
        module.body.compile_blocks(backend=refuse)
        module.head.compile(backend=refuse)
    assert diagnose.measure(modules, batches) == expected


def test_batch_norm_uses_the_batch_and_dropout_nothing():
    """So a measurement repeats, and neither running statistics nor dropout's rate enter it."""
    sections = {"data": {"name": "synthetic", "batch_size": 8, "limit": 16}}
    modules, batches = draw(3, **sections)
    rows = diagnose.measure(modules, batches)
    for norm in (m for k in modules for m in k.modules() if hasattr(m, "running_mean")):
        norm.running_var.fill_(9.0)
    assert diagnose.measure(modules, batches) == rows
    with_dropout, without = (
        draw(3, model={"name": "vit", **VIT, "dropout": p}, head={"name": "linear"}, **sections)
        for p in (0.5, 0.0)
    )
    assert diagnose.measure(*with_dropout) == diagnose.measure(*without)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "run"
    tree = {**TREE, "modules": {"count": 3}, "run": {"dir": str(folder)}}
    train(configfile.parse(tree), RankInfo())
    return folder


def contents(folder):
    return {path: path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def test_command(run, tmp_path, capsys):
    before = contents(run)
    out = tmp_path / "deep" / "rows.json"
    assert main(["diagnose", str(run), "--batches", "2", "--json", str(out)]) == 0
    shown = capsys.readouterr().out
    assert "Gradients after step 3, 2 batches" in shown
    assert "stem .. layer1.1" in shown
    facts = json.loads(out.read_text())
    assert (facts["step"], facts["batches"]) == (3, 2)
    assert [row["module"] for row in facts["modules"]] == [1, 2, 3]
    assert facts["modules"][0]["discord"] is None
    assert facts["modules"][2]["gradient"] == 1
    assert f"{facts['modules'][1]['gradient']:+.3f}" in shown
    assert contents(run) == before


def test_batches_are_those_that_follow_the_checkpoint(run):
    """In the run's microbatches, which batch norm sees."""
    blueprint, *_ = diagnose.finished.load(run, torch.device("cpu"))
    device = torch.device("cpu")
    later = list(diagnose._upcoming(blueprint, 3, 2, device))
    assert [tuple(x.shape) for x, _ in later] == [(8, 1, 8, 8)] * 4
    fourth = list(diagnose._upcoming(blueprint, 4, 1, device))
    for (x, labels), (same, same_labels) in zip(later[2:], fourth, strict=True):
        assert torch.equal(x, same)
        assert torch.equal(labels, same_labels)


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        (["RUN", "--batches", "0"], "--batches: at least 1, got 0"),
        (["nowhere"], "nowhere is not a run folder"),
        (["RUN", "--json", "there.json"], "there.json exists, and files are never overwritten"),
    ],
)
def test_mistakes(run, tmp_path, monkeypatch, capsys, arguments, problem):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "there.json").write_text("mine")
    assert main(["diagnose", *(str(run) if a == "RUN" else a for a in arguments)]) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert line.startswith("error: ")
    assert problem in line
    assert (tmp_path / "there.json").read_text() == "mine"


def test_a_place_that_cannot_be_written(run, tmp_path, capsys):
    (tmp_path / "file").write_text("")
    out = tmp_path / "file" / "rows.json"
    assert main(["diagnose", str(run), "--batches", "1", "--json", str(out)]) == 2
    captured = capsys.readouterr()
    assert "cannot be written" in captured.err
    assert not captured.out, "before anything is spent"
