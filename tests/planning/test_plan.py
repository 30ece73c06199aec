"""A plan: numbers that follow from the configuration, before anything is spent."""

import json

import pytest

from pipeline_local.configfile import configfile
from pipeline_local.data.datasets import describe
from pipeline_local.errors import UserError
from pipeline_local.planning import alternatives, plan


@pytest.fixture(autouse=True)
def as_configured(monkeypatch):
    """One number of microbatches, for speed; test_alternatives.py has all."""
    monkeypatch.setattr(alternatives, "microbatches", lambda placement: [1])


def draw(num_stages=2, **sections):
    tree = {
        "model": {"name": "mlp", "hidden": 32, "depth": 6},
        "data": {"name": "digits", "batch_size": 32},
        "modules": {"count": 3},
        "head": {"name": "linear"},
        "train": {"steps": 40, "log_every": 10},
        **sections,
    }
    config = configfile.parse(tree)
    return plan.draw(config, describe(config.data), num_stages)


def test_stages_hold_their_modules():
    drawn = draw()
    assert [[m.number for m in stage.modules] for stage in drawn.stages] == [[1], [2, 3]]
    assert [len(m.blocks) for stage in drawn.stages for m in stage.modules] == [2, 2, 2]
    assert [stage.modules[-1].head for stage in drawn.stages] == ["linear", "classifier"]
    assert all(stage.memory.peak > 0 for stage in drawn.stages)


@pytest.mark.parametrize(
    ("sections", "compared", "fed_back"),
    [
        ({}, 4 / 40, 0),
        ({"reconcile": {"weight": 0.1, "every": 2}}, 24 / 40, 0),
        ({"reconcile": {"weight": 0.1, "every": 2, "direction": "both"}}, 24 / 40, 1 / 2),
        ({"reconcile": {"weight": 0.1, "every": 8, "direction": "upstream"}}, 4 / 40, 1 / 8),
    ],
)
def test_traffic(sections, compared, fed_back):
    (edge,) = draw(**sections).edges
    x = 32 * 32 * 4
    assert edge.activations == x + 32 * 8
    assert edge.signals == pytest.approx(compared * x)
    assert edge.lagged == pytest.approx(fed_back * x)


def test_traffic_of_copies():
    """Once per period, whatever the microbatches."""
    train = {"steps": 40, "log_every": 10, "microbatches": 4}
    (edge,) = draw(head={"name": "ema", "refresh": 5}, train=train).edges
    assert edge.lagged == pytest.approx(4 * (32 * 32 + 32) / 5)


LLAMA = {
    "model": {
        "name": "causal_lm",
        "architecture": "llama",
        "hidden_size": 16,
        "intermediate_size": 32,
        "num_hidden_layers": 3,
        "num_attention_heads": 2,
    },
    "data": {
        "name": "synthetic_tokens",
        "vocabulary": 50,
        "sequence_length": 8,
        "batch_size": 8,
    },
    "task": {"name": "next_token"},
}


def test_readouts_are_the_matrix_on_every_edge():
    """Once per period, whatever the microbatches; a head's own are the norm and the temperature."""
    head = {"name": "readout", "depth": 0, "refresh": 5}
    train = {"steps": 40, "log_every": 10, "microbatches": 4}
    drawn = draw(3, **LLAMA, head=head, train=train)
    matrix, norm, rotary = 4 * 50 * 16, 4 * 16, 2 * 4 * 4  # the frequencies of half a head, twice
    layer = 4 * (4 * 16 * 16 + 3 * 16 * 32) + 2 * norm
    assert [edge.lagged for edge in drawn.edges] == [matrix / 5] * 2
    trained = [matrix + norm + 4, layer + norm + 4, 2 * layer + norm + matrix]
    modules = [stage.modules[0].memory for stage in drawn.stages]
    assert [m.gradients for m in modules] == [m.optimizer for m in modules] == trained
    fixed = [m.parameters - m.gradients for m in modules]
    assert fixed == [matrix, matrix + rotary, 2 * rotary]


def test_traffic_of_distillation():
    """Outputs alone, in float32."""
    (edge,) = draw(distill={"weight": 0.5, "every": 4}).edges
    assert edge.lagged == pytest.approx(32 * 10 * 4 / 4)


def test_a_narrow_wire_takes_half_of_it():
    """Not of the labels."""
    both = {"weight": 0.1, "every": 2, "direction": "both"}
    wide = draw(reconcile=both)
    narrow = draw(reconcile=both, parallel={"wire_dtype": "bfloat16"})
    (before,), (after,), labels = wide.edges, narrow.edges, 32 * 8
    assert after.activations - labels == (before.activations - labels) / 2
    assert (after.signals, after.lagged) == (before.signals / 2, before.lagged / 2)
    assert narrow.alternatives[1:] == wide.alternatives[1:], "the others send what they have"


def test_microbatches_send_the_same_bytes():
    parts = draw(train={"steps": 40, "log_every": 10, "microbatches": 4})
    assert parts.edges == draw().edges


def test_imbalance_and_the_better_cuts():
    """A wide input makes the first block the most expensive."""
    drawn = draw(modules={"cuts": [4, 5]})
    assert drawn.imbalance > plan.TOLERATED
    assert drawn.module_cut.edges == (1, 3)
    totals = [m.cost.total for stage in drawn.stages for m in stage.modules]
    assert max(totals) / min(totals) > 1.5
    assert drawn.stage_cut.edges == (1,)
    balanced = draw(modules={"cuts": list(drawn.module_cut.edges)})
    assert balanced.module_cut == drawn.module_cut


def test_the_fill_comes_once():
    short, long = draw(), draw(train={"steps": 4000})
    bubbles = [drawn.alternatives[0].bubble for drawn in (short, long, draw(1))]
    assert bubbles[1] == pytest.approx(bubbles[0] / 100, rel=0.02)
    assert bubbles[2] == 0


def test_json_is_never_overwritten(tmp_path):
    output = tmp_path / "sub" / "plan.json"
    plan.write(draw(), output)
    facts = json.loads(output.read_text())
    assert facts["unit"] == "FLOPs"
    assert facts["stages"][1]["memory"]["peak"] > 0
    with pytest.raises(UserError, match="never overwritten"):
        plan.write(draw(), output)
    with pytest.raises(UserError, match="cannot be written"):
        plan.write(draw(), output / "below")
