"""Runs of a tiny language model: precisions, estimators, placement, plan, resume and export."""

import builtins
import json
import shutil
import sys
from pathlib import Path

import pytest
import torch
from torch._dynamo.testing import CompileCounterWithBackend

from pipeline_local.configfile import configfile
from pipeline_local.data.datasets import describe
from pipeline_local.errors import UserError
from pipeline_local.finished import finished
from pipeline_local.finished.exporting.export import export
from pipeline_local.learning.compiler import compile_part
from pipeline_local.memory.dry_run import stage_bytes
from pipeline_local.models import hf_config, registry
from pipeline_local.placement import costs
from pipeline_local.placement.draw import draw
from pipeline_local.planning import diagnose
from pipeline_local.ranks.rank import RankInfo
from pipeline_local.record.checkpoint import Checkpoints
from pipeline_local.record.folder import RunFolder
from pipeline_local.training.train import train
from tests import token_task
from tests.models.test_causal_lm import build, ids_of, modules_of, through

GPT2 = {
    "name": "causal_lm",
    "architecture": "gpt2",
    "n_embd": 32,
    "n_head": 4,
    "n_layer": 3,
    "n_positions": 32,
    "tie_word_embeddings": False,
}


def config(run, /, **sections):
    sections = {"parallel": {"threads": 1}, **sections}
    return configfile.parse(token_task.settings(run, **sections))


def trained(run, /, **sections):
    """The tensors of all modules at the end, and the summary."""
    made = config(run, **sections)
    facts = train(made, RankInfo())
    _, modules, _ = finished.load(run)
    state = {f"{k}.{n}": v for k, m in enumerate(modules) for n, v in m.state_dict().items()}
    return state, facts


def same(first, second):
    return first.keys() == second.keys() and all(torch.equal(first[n], second[n]) for n in first)


def test_a_run_learns_is_exported_and_loaded(tmp_path):
    from transformers import AutoModelForCausalLM

    facts = train(config(tmp_path / "run", train={"steps": 16, "seed": 0}), RankInfo())
    assert facts["loss"][-1] < 3.3 < torch.tensor(40.0).log()
    export(tmp_path / "run", tmp_path / "out")
    with hf_config.quiet():
        model, missing = AutoModelForCausalLM.from_pretrained(
            tmp_path / "out", output_loading_info=True, local_files_only=True
        )
    assert not any(missing.values()), missing
    _, modules, _ = finished.load(tmp_path / "run")
    x = ids = ids_of(16)
    for module in modules:
        x = module.body.eval()(x)
    assert torch.equal(model(ids).logits, modules[-1].head(x))
    with pytest.raises(UserError, match="exists, and files are never overwritten"):
        export(tmp_path / "run", tmp_path / "out")
    export(tmp_path / "run", tmp_path / "out.safetensors")
    again = config(
        tmp_path / "again",
        model={
            "name": "causal_lm",
            "config": str(tmp_path / "out"),
            "weights": str(tmp_path / "out.safetensors"),
        },
        train={"steps": 1, "seed": 9},
        optimizer={"name": "adamw", "lr": 1e-9},
    )
    assert train(again, RankInfo())["loss"][-1] == pytest.approx(facts["loss"][-1], rel=1e-4)


@pytest.mark.long
@pytest.mark.timeout(600)
def test_the_tiny_configuration_learns_on_two_stages(tmp_path, monkeypatch):
    """Bits per byte of the test text: 8 before the first step, 2.87 measured in the end."""
    monkeypatch.chdir(Path(__file__).parent.parent)  # its data are named from there
    facts = train(configfile.load("configs/lm-tiny.yaml", [f"run.dir={tmp_path / 'run'}"]))
    assert len(facts["peak_memory_bytes"]) == 2
    assert max(facts["bits_per_byte"]) < 3.0


def test_a_run_does_not_need_the_file_it_was_configured_by(tmp_path):
    """Its own configuration holds the keys, and notices that the file has changed."""
    facts = {"model_type": "llama", "hidden_size": 32, "num_attention_heads": 4}
    facts |= {"num_hidden_layers": 2, "intermediate_size": 48, "vocab_size": 40}
    file = tmp_path / "config.json"
    file.write_text(json.dumps(facts))
    sections = {"model": {"name": "causal_lm", "config": str(file)}}
    state, _ = trained(tmp_path / "run", train={"steps": 2, "seed": 0}, **sections)
    file.write_text(json.dumps(facts | {"rms_norm_eps": 0.1}))
    longer = {"train": {"steps": 4, "seed": 0}, **sections}
    resumes = {"run": {"dir": str(tmp_path / "run"), "resume": True}}
    with pytest.raises(UserError, match="another model"):
        train(config(tmp_path / "run", **longer, **resumes), RankInfo())
    file.unlink()
    _, modules, _ = finished.load(tmp_path / "run")
    name = "body.0.embed_tokens.weight"
    assert torch.equal(modules[0].state_dict()[name], state[f"0.{name}"])
    assert train(RunFolder(tmp_path / "run").resumed(["train.steps=4"]), RankInfo())["steps"] == 4


def test_recomputation_and_resuming_draw_the_same_dropout(tmp_path):
    sections = {"model": GPT2, "reconcile": {"weight": 0.1, "every": 1, "estimator": "exact"}}
    sections |= {"train": {"steps": 2, "seed": 0}, "checkpoint": {"every_steps": 1, "keep": 3}}
    plain, _ = trained(tmp_path / "a", **sections)
    sections["modules"] = {"count": 2, "recompute": True}
    again, _ = trained(tmp_path / "b", **sections)
    assert same(plain, again)
    checkpoints = Checkpoints(RunFolder(tmp_path / "b").checkpoints, 2)
    shutil.rmtree(checkpoints.at(2))
    assert checkpoints.latest() == 1
    resumed = {"dir": str(tmp_path / "b"), "resume": True}
    state, _ = trained(tmp_path / "b", run=resumed, **sections)
    assert same(plain, state)


FEW = {"steps": 2, "seed": 0, "microbatches": 2}


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    """The tensors of a run with nothing special about it."""
    return trained(tmp_path_factory.mktemp("plain") / "run", train=FEW)[0]


@pytest.mark.parametrize("estimator", ["exact", "finite_difference", "shift"])
def test_reconciliation_changes_the_second_module_alone(tmp_path, plain, estimator):
    reconcile = {"weight": 0.1, "every": 1, "estimator": estimator}
    state, _ = trained(tmp_path / "run", train=FEW, reconcile=reconcile)
    differ = {name for name in plain if not torch.equal(state[name], plain[name])}
    assert differ
    assert all(name.startswith("1.") for name in differ)


@pytest.mark.parametrize("precision", ["bfloat16", "float64"])
def test_precisions(tmp_path, plain, precision):
    state, _ = trained(tmp_path / "run", train=FEW, precision=precision)
    for name, value in state.items():
        assert value.dtype == (torch.float64 if precision == "float64" else torch.float32)
        assert torch.allclose(value.float(), plain[name], atol=0.03), name


def test_more_tokens_than_the_data_has(tmp_path):
    model = {**token_task.settings("")["model"], "vocab_size": 64}
    drawn = draw(config(tmp_path, model=model), describe(config(tmp_path).data))
    assert drawn.info.num_classes == 40
    assert drawn.task.output_shape == (16, 64)
    _, facts = trained(tmp_path / "run", model=model, train={"steps": 1, "seed": 0})
    assert facts["steps"] == 1


def test_gradients_are_diagnosed(tmp_path, plain):
    trained(tmp_path / "run", train=FEW)
    first, last = diagnose.diagnose(tmp_path / "run", 1, None)
    assert 0 < abs(first.gradient) < 1
    assert last.gradient == pytest.approx(1)
    assert 0 < abs(last.cosine) < 1


def test_a_module_that_trains_nothing_is_diagnosed(tmp_path):
    """The first one, whose only block is the copy of a tied embedding."""
    tied = {**token_task.settings("")["model"], "tie_word_embeddings": True}
    trained(tmp_path / "run", model=tied, modules={"count": 2, "cuts": ["layer0"]}, train=FEW)
    first, last = diagnose.diagnose(tmp_path / "run", 1, None)
    assert first.gradient is None
    assert 0 < abs(first.signal) < 1
    assert last.gradient == pytest.approx(1)
    assert 0 < abs(last.cosine) < 1


def test_memory_and_operations_are_counted(tmp_path):
    """As `plan` does, and `modules.cuts=auto`."""
    made = config(tmp_path, modules={"count": 2, "cuts": "auto"}, model=GPT2)
    drawn = draw(made, describe(made.data))
    memory = stage_bytes(drawn, [0, 1], 1)
    assert memory.peak > sum(module.parameters for module in memory.modules)
    counted = costs.by_flops(drawn)
    body = [cost.forward for cost in counted.blocks]
    layer = 8 * 16 * 2 * 12 * 32**2  # of the matrices alone, for 8 samples of 16 tokens
    assert body[0] == 0
    assert all(layer <= cost <= 1.2 * layer for cost in body[1:])
    assert counted.classifier.forward == 8 * 16 * 2 * 32 * 40


def test_layers_of_a_kind_share_one_compiled_graph():
    kinds = ["sliding_attention", "full_attention"] * 2
    backbone = build("olmo3", num_hidden_layers=4, layer_types=kinds)
    modules = [module.eval() for module in modules_of(backbone)]
    with torch.no_grad():
        wanted = through(modules, ids_of())
    counter = CompileCounterWithBackend("eager")
    for module in modules[1:-1]:
        compile_part(module, backend=counter)
    with torch.no_grad():
        assert torch.equal(through(modules, ids_of()), wanted)
    assert counter.frame_count == 2


def test_without_transformers_one_line_says_what_to_install(monkeypatch):
    real = builtins.__import__

    def absent(name, *args, **kwargs):
        if name.partition(".")[0] == "transformers":
            raise ImportError(name)
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", absent)
    for name in [name for name in sys.modules if name.partition(".")[0] == "transformers"]:
        monkeypatch.delitem(sys.modules, name)
    with pytest.raises(UserError, match=r'pip install "pipeline-local\[lm\]"'):
        registry.build("causal_lm", {"architecture": "llama"}, (4, 5), (4,), torch.int64)
