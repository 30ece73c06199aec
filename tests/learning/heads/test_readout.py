"""Readouts: what is private, what is the last module's, and when it comes."""

import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from pipeline_local import fit
from pipeline_local.config import HeadConfig
from pipeline_local.errors import UserError
from pipeline_local.learning import heads
from pipeline_local.learning.heads import ReadoutHead, Site
from pipeline_local.learning.step import LAG
from pipeline_local.record import sealed
from pipeline_local.training.callbacks import Callback

T, D, V, EVERY = 6, 8, 11, 3


class Unembedding(nn.Module):
    """A norm and a linear layer, as a language model ends."""

    def __init__(self):
        super().__init__()
        self.norm = nn.LayerNorm(D)
        self.linear = nn.Linear(D, V, bias=False)

    @property
    def weight(self):
        return self.linear.weight

    def hidden(self, x):
        return self.norm(x)

    def forward(self, x):
        return self.linear(self.norm(x))


class Mix(nn.Module):
    """A causal block: each position sees the one before."""

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(2 * D, D)

    def forward(self, x):
        earlier = nn.functional.pad(x, (0, 0, 1, 0))[:, :-1]
        return x + self.linear(torch.cat([x, earlier], -1)).relu()


def model():
    torch.manual_seed(0)
    return nn.Sequential(nn.Embedding(V, D), *[Mix() for _ in range(5)], Unembedding())


def built(**options):
    with torch.device("meta"):
        later = [Mix(), Mix()]
        classifier = Unembedding()
    config = HeadConfig("readout", args=options.pop("args", {}), **options)
    site = Site(
        layout="NTC",
        shape=(T, D),
        later=later,
        later_shapes=[(T, D)] * 3,
        copies=heads.copies(config, 0, 3, len(later)),
        rules=[heads.head.reset] * 3,
        output_shape=(T, V),
        classifier=classifier,
    )
    head = heads.build(config, site).to_empty(device="cpu")
    heads.initialize(head)
    return head


@pytest.mark.parametrize("depth", [0, 1, 2, 5])
def test_logits_are_those_of_blocks_norm_temperature_and_matrix(depth):
    head = built(depth=depth)
    assert len(head.blocks) == min(depth, 2)
    original = Unembedding()
    head.begin(original)
    with torch.no_grad():
        head.temperature.fill_(1.5)
    x = torch.randn(2, T, D)
    expected = 1.5 * head.classifier.norm(head.blocks(x)) @ original.weight.T
    torch.testing.assert_close(head(x), expected)
    torch.testing.assert_close(head.hidden(x) @ head.weight.T, expected)


def test_the_matrix_is_read_only_unless_private():
    shared, private = built(), built(args={"private": True})
    names = {name for name, p in private.named_parameters() if p.requires_grad}
    assert {name for name, p in shared.named_parameters() if p.requires_grad} == names - {
        "classifier.linear.weight"
    }
    assert private.copy is None
    before = private.weight.clone()
    private.begin(Unembedding())
    assert torch.equal(private.weight, before)
    published = torch.randn(V, D)
    shared.follow(iter([published]))
    assert torch.equal(shared.weight, published)


def test_the_entry_knows_when_copies_are_published():
    assert heads.refresh(HeadConfig("readout", refresh=7)) == 7
    assert heads.refresh(HeadConfig("readout", args={"private": True})) == 0
    assert heads.follows(HeadConfig("readout")) == "unembedding"
    assert "every 10 steps" in heads.title(HeadConfig("readout"))


class Watch(Callback):
    """Notes the matrices of all heads before the first step and after each."""

    def __init__(self):
        self.seen = []

    def on_start(self, run, step):
        self.note(run)

    def on_step(self, run, step):
        self.note(run)

    def note(self, run):
        self.seen.append([module.head.weight.detach().clone() for module in run.modules])


def tokens(seed, count):
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(V, (count, T + 1), generator=generator)
    return ids[:, :-1], ids[:, 1:]


def run(folder: Path, watch=None, steps=14, **options):
    options = {"head": {"name": "readout", "depth": 1, "refresh": EVERY}, **options}
    trained = model()
    summary = fit(
        trained,
        tokens(0, 40),
        tokens(1, 12),
        batch_size=8,
        lr=0.2,
        run_dir=folder,
        callbacks=[watch] if watch else [],
        train={"steps": steps, **options.pop("train", {})},
        parallel={"threads": 1},
        **{"modules": 4, **options},
    )
    return summary, trained


@pytest.mark.parametrize("microbatches", [1, 2])
def test_each_hop_takes_the_same_number_of_steps(microbatches, tmp_path):
    """What the last module has after n updates, the one k modules before it has k hops later."""
    watch = Watch()
    run(tmp_path / "run", watch, train={"microbatches": microbatches})
    published = [row[-1] for row in watch.seen]
    for step, row in enumerate(watch.seen):
        for hops, matrix in enumerate(reversed(row[:-1]), start=1):
            # the message of step n has n updates; it is applied in step n + LAG, seen after it
            known = [n for n in range(EVERY, 15, EVERY) if n + hops * (LAG + 1) <= step]
            assert torch.equal(matrix, published[known[-1] if known else 0]), (step, hops)
    assert not torch.equal(watch.seen[-1][1], watch.seen[0][1])


@pytest.mark.parametrize("private", [False, True])
def test_a_run_says_perplexity_and_accuracy(private, tmp_path):
    head = {"name": "readout", "depth": 0, "private": private}
    summary, _ = run(tmp_path / "run", head=head)
    assert len(summary["perplexity"]) == len(summary["ensemble_perplexity"]) == 4
    for perplexity, loss in zip(summary["perplexity"], summary["loss"], strict=True):
        assert perplexity == pytest.approx(torch.tensor(loss).exp().item(), rel=1e-5)


def test_resumed_with_matrices_under_way_it_is_the_same_run(tmp_path):
    saved = {"checkpoint": {"every_steps": 4, "keep": 9}}
    run(tmp_path / "whole", **saved)
    run(tmp_path / "cut", steps=14, **saved)
    for folder in sorted((tmp_path / "cut" / "checkpoints").iterdir())[-2:]:
        shutil.rmtree(folder)
    run(tmp_path / "cut", resume=True, **saved)

    def contents(folder):
        last = max((folder / "checkpoints").iterdir())
        files = sorted(last.glob("*.safetensors"))
        return {(p.name, key): t for p in files for key, t in load_file(p).items()}

    one, two = contents(tmp_path / "whole"), contents(tmp_path / "cut")
    assert one.keys() == two.keys()
    assert all(torch.equal(one[key], two[key]) for key in one)
    assert any("pending" in key for _, key in one), "or nothing was under way"


def without_axes(path):
    """A module's file as earlier versions wrote it: the temperature was a scalar."""
    facts, named = sealed.verify(path), sealed.read(path)
    grown = [name for name, t in named.items() if t.shape == (1,)]
    sealed.write(path, named | {name: named[name].reshape(()) for name in grown}, facts)
    return grown


@pytest.mark.parametrize("engine", ["torch", pytest.param("deepspeed", marks=pytest.mark.long)])
def test_a_temperature_without_an_axis_is_read(engine, tmp_path):
    options = {"optimizer": "adamw", "checkpoint": {"every_steps": 7, "keep": 9}}
    run(tmp_path / "whole", **options, engine=engine)
    run(tmp_path / "cut", **options, engine=engine)
    first, last = sorted((tmp_path / "cut" / "checkpoints").iterdir())
    shutil.rmtree(last)
    grown = [name for path in sorted(first.iterdir()) for name in without_axes(path)]
    assert grown.count("head.temperature") == 3
    assert len(grown) == 3 * 3, "with both averages of AdamW"
    run(tmp_path / "cut", resume=True, **options, engine=engine)
    for path in sorted((tmp_path / "whole" / "checkpoints" / last.name).iterdir()):
        one, two = sealed.read(path), sealed.read(last / path.name)
        assert one.keys() == two.keys()
        assert all(torch.equal(one[name], two[name]) for name in one)


def test_an_exported_head_without_an_axis_is_read():
    head = built()
    state = head.state_dict()
    assert state["temperature"].shape == (1,)
    head.load_state_dict(state | {"temperature": torch.tensor(1.5)}, strict=True)
    assert torch.equal(head.temperature, torch.tensor([1.5]))


def test_first_order_estimators_reconcile_through_unformed_logits(tmp_path):
    """And `exact`, with all of them, does what finite differences do in the limit."""
    trained = {}
    for estimator in ("shift", "finite_difference", "exact"):
        options = {"estimator": estimator, "weight": 0.05, "every": 1, "step": 1e-3}
        reconcile = {**options, "distance": "squared"}
        _, network = run(tmp_path / estimator, steps=6, reconcile=reconcile, precision="float64")
        trained[estimator] = torch.cat([p.detach().flatten() for p in network.parameters()])
    start = torch.cat([p.detach().flatten() for p in model().parameters()])
    moved = trained["exact"] - start
    for estimator in ("shift", "finite_difference"):
        assert (trained[estimator] - trained["exact"]).norm() < 0.05 * moved.norm()


def test_another_model_is_refused_in_one_line(tmp_path):
    blocks = [nn.Embedding(V, D), Mix(), Mix(), nn.Linear(D, V)]
    with pytest.raises(UserError, match=r"head\.name: readout does not fit"):
        fit(
            nn.Sequential(*blocks),
            tokens(0, 16),
            tokens(1, 8),
            modules=2,
            epochs=1,
            batch_size=8,
            head={"name": "readout"},
            run_dir=tmp_path / "run",
            parallel={"threads": 1},
        )


def test_only_readouts_have_hidden_states():
    assert isinstance(built(), ReadoutHead)
    assert not isinstance(built(), nn.Sequential)


@pytest.mark.parametrize("name", ["linear", "auglocal", "ema"])
def test_other_heads_give_logits_of_each_token(name, tmp_path):
    """With a norm and a matrix of their own; none of them sees a later token."""
    head = {"name": name} | ({"depth": 1} if name == "auglocal" else {})
    watch = Heads()
    run(tmp_path / "run", watch, steps=2, head=head)
    x = torch.randn(2, T, D)
    with torch.no_grad():
        before, after = watch.first(x), watch.first(torch.cat([x[:, :-1], x[:, 1:2]], 1))
    assert before.shape == (2, T, V)
    assert torch.equal(before[:, :-1], after[:, :-1])
    assert not torch.equal(before[:, -1], after[:, -1])


class Heads(Callback):
    """Keeps the first module's head."""

    def on_start(self, run, step):
        self.first = run.modules[0].head


def test_labels_of_another_length_are_refused(tmp_path):
    x, y = tokens(0, 16)
    with pytest.raises(UserError, match=r"a token for each of the 6 places of the outputs, got 4"):
        fit(model(), (x, y[:, :4]), (x, y[:, :4]), epochs=1, run_dir=tmp_path / "run")


@pytest.mark.parametrize("name", ["mlp", "conv", "etf"])
def test_heads_that_pool_are_refused(name, tmp_path):
    with pytest.raises(UserError, match=rf"head\.name: {name} does not fit"):
        run(tmp_path / "run", head={"name": name})
