"""Tied embeddings: one parameter in a single module, a copy that follows in several."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from pipeline_local.configfile import configfile
from pipeline_local.data.datasets import describe
from pipeline_local.errors import UserError
from pipeline_local.finished import finished
from pipeline_local.finished.exporting.export import export
from pipeline_local.learning import contents
from pipeline_local.learning.step import LAG, Step
from pipeline_local.memory.dry_run import stage_bytes
from pipeline_local.models import hf_config, weights
from pipeline_local.placement.draw import draw
from pipeline_local.planning import profile
from pipeline_local.ranks.rank import RankInfo
from pipeline_local.record.checkpoint import Checkpoints
from pipeline_local.record.folder import RunFolder
from pipeline_local.training.train import train
from tests import token_task
from tests.models.test_causal_lm import ids_of

CPU = torch.device("cpu")
GPT2 = {"name": "causal_lm", "architecture": "gpt2", "n_embd": 32, "n_head": 4, "n_layer": 3}
GPT2 |= {"n_positions": 32, "resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}
TABLE, UNEMBEDDING = "transformer.wte.weight", "lm_head.weight"


def config(run, count, /, tied=True, **sections):
    sections = {"parallel": {"threads": 1}, "modules": {"count": count}, **sections}
    model = {**GPT2, "tie_word_embeddings": tied}
    return configfile.parse(token_task.settings(run, model=model, **sections))


def loaded(folder):
    from transformers import AutoModelForCausalLM

    with hf_config.quiet():
        model, missing = AutoModelForCausalLM.from_pretrained(
            folder, output_loading_info=True, local_files_only=True
        )
    assert not any(missing.values()), missing
    return model.eval()


def own_logits(run):
    x = ids_of(16)
    _, modules, _ = finished.load(run)
    with torch.no_grad():
        for module in modules:
            x = module.body.eval()(x)
        return modules[-1].head.eval()(x)


def test_one_module_has_one_parameter_and_the_gradient_of_both_uses(tmp_path):
    from transformers import GPT2Config, GPT2LMHeadModel

    made = config(tmp_path, 1)
    module = draw(made, describe(made.data)).module(0, CPU)
    table = module.body[0].table.weight
    assert table is module.head.weight
    assert sum(parameter is table for parameter in module.trainable) == 1
    with hf_config.quiet():
        keys = {key: value for key, value in GPT2.items() if key not in ("name", "architecture")}
        model = GPT2LMHeadModel(GPT2Config(**keys, vocab_size=token_task.VOCABULARY))
    blueprint = draw(made, describe(made.data))
    model.load_state_dict(weights.model_state(blueprint.parts(module)))
    assert model.lm_head.weight is model.transformer.wte.weight
    ids, labels = ids_of(16), ids_of(16).flip(1)
    module.train().forward(ids, labels, Step(0, lr=0.1))
    module.signal()
    module.learn()
    logits = model.train()(ids).logits
    torch.nn.functional.cross_entropy(logits.flatten(0, 1), labels.flatten()).backward()
    names = {id(p): name for name, p in model.named_parameters()}
    own = dict(zip(map(id, module.trainable), module.gradients, strict=True))
    state = weights.model_state(blueprint.parts(module))
    assert len(own) == len(names)
    gradient = own[id(table)]
    assert torch.allclose(gradient, model.transformer.wte.weight.grad, rtol=1e-4, atol=1e-6)
    assert torch.equal(state[TABLE], state[UNEMBEDDING])


def test_the_gradient_of_the_lookup_is_missing_without_the_tie(tmp_path):
    """What the sum above is made of: neither part is zero."""
    made = config(tmp_path, 1)
    module = draw(made, describe(made.data)).module(0, CPU)
    ids, labels = ids_of(16), ids_of(16).flip(1)
    module.train().forward(ids, labels, Step(0, lr=0.1))
    module.signal()
    head = dict(zip(map(id, module._head_params), module._now().head_grads, strict=True))
    table = module.head.weight
    before = head[id(table)].clone()
    module.learn()
    whole = dict(zip(map(id, module.trainable), module.gradients, strict=True))[id(table)]
    assert (whole - before).norm() > 0.01 * before.norm() > 0


@pytest.mark.parametrize("shared", [True, False], ids=["readouts", "heads of their own"])
def test_the_copy_follows_at_a_fixed_lag(tmp_path, monkeypatch, shared):
    monkeypatch.setattr(contents, "TIED_REFRESH", 3)
    head = {"name": "readout", "depth": 0, "refresh": 3} if shared else {"name": token_task.HEAD}
    steps, hops = 18, 2
    sections = {"head": head, "checkpoint": {"every_steps": 1, "keep": steps}}
    made = config(tmp_path / "run", 3, train={"steps": steps, "seed": 0}, **sections)
    train(made, RankInfo())
    folder = RunFolder(tmp_path / "run").checkpoints
    at = {n: (state(folder, n, 1), state(folder, n, 3)) for n in range(1, steps + 1)}
    start = draw(made, describe(made.data)).module(2, CPU).head.weight
    unembedding = {0: start} | {n: last["head.lm_head.weight"] for n, (_, last) in at.items()}
    delay = hops * (LAG + 1) - 1
    for step, (first, _) in at.items():
        published = max(0, (step - 1 - delay) // 3 * 3)
        table = first["body.0.wte.weight"]
        assert torch.equal(table, unembedding[published]), (step, published)
    assert published > 3


def state(folder, step, module):
    """The tensors of a module (from 1) in a checkpoint."""
    files = sorted(Checkpoints(folder, 3).at(step).glob("*.safetensors"))
    tensors = load_file(files[module - 1])
    return {name.removeprefix("module."): value for name, value in tensors.items()}


def test_an_export_of_one_module_is_tied(tmp_path):
    train(config(tmp_path / "run", 1), RankInfo())
    export(tmp_path / "run", tmp_path / "out")
    assert UNEMBEDDING not in load_file(tmp_path / "out" / "model.safetensors")
    model = loaded(tmp_path / "out")
    assert model.lm_head.weight is model.transformer.wte.weight
    assert torch.equal(model(ids_of(16)).logits, own_logits(tmp_path / "run"))
    export(tmp_path / "run", tmp_path / "out.safetensors")
    assert {TABLE, UNEMBEDDING} <= load_file(tmp_path / "out.safetensors").keys()


def test_an_export_of_several_has_the_copy_that_was_trained_with(tmp_path):
    train(config(tmp_path / "run", 2), RankInfo())
    export(tmp_path / "run", tmp_path / "out")
    facts = json.loads((tmp_path / "out" / "config.json").read_text())
    assert facts["tie_word_embeddings"] is False
    assert torch.equal(loaded(tmp_path / "out")(ids_of(16)).logits, own_logits(tmp_path / "run"))


def test_weights_of_a_tied_model_are_taken_over_in_both_places(tmp_path):
    train(config(tmp_path / "run", 1), RankInfo())
    export(tmp_path / "run", tmp_path / "out")
    trained = load_file(tmp_path / "out" / "model.safetensors")
    model = {**GPT2, "weights": str(tmp_path / "out")}
    sections = {"modules": {"count": 2}, "parallel": {"threads": 1}, "train": {"steps": 1}}
    sections |= {"optimizer": {"name": "sgd", "lr": 1e-12, "warmup": 0}}
    tree = token_task.settings(tmp_path / "again", model=model, **sections)
    train(configfile.parse(tree), RankInfo())
    export(tmp_path / "again", tmp_path / "same")
    again = load_file(tmp_path / "same" / "model.safetensors")
    assert torch.allclose(again[TABLE], trained[TABLE])
    spoiled = trained | {UNEMBEDDING: trained[TABLE] + 1}
    save_file(spoiled, tmp_path / "spoiled.safetensors")
    tree["model"] = {**GPT2, "weights": str(tmp_path / "spoiled.safetensors")}
    tree["run"] = {"dir": str(tmp_path / "third")}
    with pytest.raises(UserError, match="differ, and the model ties them; set"):
        train(configfile.parse(tree), RankInfo())


@pytest.mark.parametrize("count", [1, 2])
def test_its_parts_are_measured_and_its_memory_is_known(tmp_path, count):
    made = config(tmp_path, count)
    blueprint = draw(made, describe(made.data))
    assert len(profile.measure(made, describe(made.data), 1, RankInfo())["blocks"]) == 4
    memory = stage_bytes(blueprint, range(count), 1)
    untied = draw(config(tmp_path, count, tied=False), describe(made.data))
    matrix = 4 * token_task.VOCABULARY * 32
    parameters = [
        sum(module.parameters for module in stage_bytes(each, range(count), 1).modules)
        for each in (blueprint, untied)
    ]
    assert memory.peak > parameters[0]
    assert parameters[1] - parameters[0] == (matrix if count == 1 else 0)


def test_a_run_that_is_resumed_between_two_hops_is_the_same(tmp_path, monkeypatch):
    monkeypatch.setattr(contents, "TIED_REFRESH", 3)
    steps, cut = 16, 7
    sections = {"head": {"name": token_task.HEAD}, "train": {"steps": steps, "seed": 0}}
    sections |= {"checkpoint": {"every_steps": 1, "keep": steps}}
    train(config(tmp_path / "run", 3, **sections), RankInfo())
    checkpoints = Checkpoints(RunFolder(tmp_path / "run").checkpoints, 3)
    last = {path.name: path.read_bytes() for path in checkpoints.at(steps).iterdir()}
    for step in range(cut + 1, steps + 1):
        shutil.rmtree(checkpoints.at(step))
    train(RunFolder(tmp_path / "run").resumed([]), RankInfo())
    again = {path.name: path.read_bytes() for path in checkpoints.at(steps).iterdir()}
    safe = [name for name in last if name.endswith(".safetensors")]
    assert len(safe) == 3
    assert all(last[name] == again[name] for name in safe)
