"""Language models in and out of Hugging Face's folders."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from pipeline_local.errors import UserError
from pipeline_local.models import hf_config, hf_folder, weights
from tests.models.test_causal_lm import (
    ARCHITECTURES,
    build,
    ids_of,
    modules_of,
    state_of,
    through,
    uncut,
)

TIED = {"vocab_size": 40, "n_embd": 32, "n_head": 4, "n_layer": 2}


def started(backbone, path, seed=7):
    """Fresh blocks, then the weights of a file or a folder; and what was said about them."""
    modules = modules_of(backbone, seed)
    found = weights.fitted(backbone, weights.load(path))
    found.check_finite()
    for block, module in zip([*backbone.blocks, backbone.classifier], modules, strict=True):
        weights.load_block(module.eval(), block, found.state, found.fresh)
    return modules, found.notes


def tied_gpt2():
    from transformers import GPT2Config, GPT2LMHeadModel

    with hf_config.quiet(), torch.random.fork_rng():
        torch.manual_seed(0)
        return GPT2LMHeadModel(GPT2Config(**TIED)).eval()


@pytest.mark.parametrize("shard", ["1GB", "20KB"])
def test_a_folder_in_one_file_or_in_several(tmp_path, shard):
    backbone = build("qwen3")
    model = uncut(backbone, modules_of(backbone)).eval()
    model.save_pretrained(tmp_path, max_shard_size=shard)
    assert (len(list(tmp_path.glob("*.safetensors"))) > 1) == (shard == "20KB")
    modules, notes = started(backbone, tmp_path)
    assert notes == []
    assert torch.equal(through(modules, ids_of()), model(ids_of()).logits)
    if shard == "1GB":
        modules, _ = started(backbone, tmp_path / "model.safetensors")
        assert torch.equal(through(modules, ids_of()), model(ids_of()).logits)


def test_tied_weights_start_as_two_copies(tmp_path):
    """Memory from the meta device unties them silently: the second one would hold anything."""
    model = tied_gpt2()
    model.save_pretrained(tmp_path)
    assert "lm_head.weight" not in load_file(tmp_path / "model.safetensors")
    modules, notes = started(build("gpt2"), tmp_path)
    assert notes == [
        "model.weights: lm_head.weight is not there, and starts as a copy of transformer.wte.weight"
    ]
    assert torch.equal(modules[-1].weight, modules[0].wte.weight)
    assert modules[-1].weight.data_ptr() != modules[0].wte.weight.data_ptr()
    assert torch.equal(through(modules, ids_of()), model(ids_of()).logits)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_what_transformers_has_saved_is_loaded(architecture, tmp_path):
    """It saves some tensors under earlier names, such as GPT-NeoX's unembedding."""
    from transformers import AutoConfig, AutoModelForCausalLM

    backbone = build(architecture)
    config = AutoConfig.for_model(**json.loads(backbone.language.files["config.json"]))
    with hf_config.quiet():
        AutoModelForCausalLM.from_config(config, dtype=torch.float32).save_pretrained(tmp_path)
        model = AutoModelForCausalLM.from_pretrained(tmp_path, local_files_only=True).eval()
    modules, notes = started(backbone, tmp_path)
    assert not notes
    assert torch.equal(through(modules, ids_of()), model(ids_of()).logits)


def test_names_as_gpt2_was_published(tmp_path):
    """Those of the body alone, with the causal masks of earlier versions."""
    model = tied_gpt2()
    state = dict(model.transformer.state_dict())
    for layer in range(2):
        state[f"h.{layer}.attn.bias"] = torch.ones(1, 1, 8, 8)
        state[f"h.{layer}.attn.masked_bias"] = torch.tensor(-1e4)
    save_file(state, tmp_path / "model.safetensors")
    modules, _ = started(build("gpt2"), tmp_path)
    assert torch.equal(through(modules, ids_of()), model(ids_of()).logits)


def drop(name):
    return lambda state: state.pop(name)


def reshape(name):
    return lambda state: state.update({name: torch.zeros(3, 3)})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (drop("model.norm.weight"), "missing: model.norm.weight"),
        (drop("model.layers.1.mlp.up_proj.weight"), "missing: model.layers.1.mlp.up_proj.weight"),
        (reshape("lm_head.weight"), "of another shape: lm_head.weight [3, 3] instead of [40, 32]"),
        (reshape("model.more"), "unexpected: model.more"),
    ],
)
def test_weights_of_another_model_are_one_line(change, message):
    backbone = build()
    state = state_of(backbone, modules_of(backbone))
    change(state)
    with pytest.raises(UserError) as caught:
        weights.fitted(backbone, state)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("index", "message"),
    [
        (None, "has no model.safetensors, nor an index"),
        ("{", "cannot be read"),
        ('{"weight_map": {"a": "part.safetensors"}}', "lacks part.safetensors"),
        ('{"weight_map": {"a": "../part.safetensors"}}', "lacks part.safetensors"),
    ],
)
def test_folders_that_are_not_whole(tmp_path, index, message):
    folder = tmp_path / "model"
    folder.mkdir()
    save_file({"a": torch.zeros(1)}, tmp_path / "part.safetensors")
    if index is not None:
        (folder / "model.safetensors.index.json").write_text(index)
    with pytest.raises(UserError, match=message):
        weights.load(folder)


def test_an_index_stands_for_its_folder(tmp_path):
    save_file({"a": torch.zeros(1)}, tmp_path / "part.safetensors")
    index = tmp_path / "model.safetensors.index.json"
    index.write_text('{"weight_map": {"a": "part.safetensors"}}')
    assert weights.load(index).keys() == {"a"}


@pytest.mark.parametrize("architecture", ["gemma3_text", "gpt2", "llama", "mistral"])
def test_what_is_written_loads_without_a_missing_key(tmp_path, architecture):
    from transformers import AutoModelForCausalLM

    backbone = build(architecture)
    modules = [module.eval() for module in modules_of(backbone)]
    files = {name: text.encode() for name, text in backbone.language.files.items()}
    hf_folder.write(tmp_path / "out", state_of(backbone, modules), files)
    with hf_config.quiet():
        model, facts = AutoModelForCausalLM.from_pretrained(
            tmp_path / "out", output_loading_info=True, local_files_only=True
        )
    assert not any(facts.values()), facts
    assert model.dtype == torch.float32
    assert torch.equal(model(ids_of()).logits, through(modules, ids_of()))
    assert json.loads((tmp_path / "out/config.json").read_text())["architectures"] == [
        type(model).__name__
    ]
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    assert len({path.stat().st_mode for path in (tmp_path / "out").iterdir()}) == 1


@pytest.mark.parametrize(
    ("said", "end", "published"),
    [(None, 7, 7), (3, 7, 7), ([3, 7], 7, [3, 7]), (3, None, 3), (None, None, None)],
)
def test_the_end_token_of_the_data_ends_what_others_generate(said, end, published):
    """Unless the configuration names it already; where nobody knows it, nothing changes."""
    backbone = build(eos_token_id=said)
    state = state_of(backbone, modules_of(backbone))
    _, files = hf_folder.published(backbone.language, state, end)
    assert json.loads(files["config.json"])["eos_token_id"] == published


def test_nothing_is_left_of_a_folder_that_cannot_be_written(tmp_path):
    with pytest.raises(UserError, match="cannot be written"):
        hf_folder.write(tmp_path / "out", {"a": torch.zeros(1)}, {"no/such/folder": b""})
    assert not list(tmp_path.iterdir())


def test_a_folder_that_is_there_stays(tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out/mine").write_text("mine")
    with pytest.raises(UserError, match="cannot be written"):
        hf_folder.write(tmp_path / "out", {"a": torch.zeros(1)}, {})
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["mine"]
    assert len(list(tmp_path.iterdir())) == 1


def tokenizer():
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    ids = {letter: number for number, letter in enumerate(pre_tokenizers.ByteLevel.alphabet())}
    made = Tokenizer(models.BPE(vocab=ids, merges=[]))
    made.pre_tokenizer, made.decoder = pre_tokenizers.ByteLevel(False), decoders.ByteLevel()
    return made
