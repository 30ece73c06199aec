"""Runs of models as their publishers configure and save them: what a run has trained is used."""

import json

import pytest
import torch
import yaml

from pipeline_local import Generator
from pipeline_local.configfile import configfile
from pipeline_local.data.datasets import describe
from pipeline_local.errors import UserError
from pipeline_local.finished import finished
from pipeline_local.finished.exporting.export import export
from pipeline_local.models import hf_config
from pipeline_local.placement.describe import doubts
from pipeline_local.placement.draw import draw
from pipeline_local.ranks.rank import RankInfo
from pipeline_local.record.folder import RunFolder
from pipeline_local.training.train import train

SIZES = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "vocab_size": 260}
SMALL = {**SIZES, "intermediate_size": 24, "max_position_embeddings": 32}
ONE_KEY = {**SMALL, "num_key_value_heads": 1}
GPT2 = {"n_embd": 16, "n_layer": 2, "n_head": 2, "n_ctx": 32, "n_positions": 32, "vocab_size": 260}
FILES = {
    "gpt2": {**GPT2, "model_type": "gpt2", "task_specific_params": {"text": {"max_length": 50}}},
    "smollm2": {
        **ONE_KEY,
        **{"model_type": "llama", "is_llama_config": True, "rope_interleaved": False},
        **{"rope_theta": 100000, "rope_scaling": None, "tie_word_embeddings": True},
    },
    "smollm3": {
        **ONE_KEY,
        **{"model_type": "smollm3", "no_rope_layers": [1, 0], "max_window_layers": 28},
        **{"use_sliding_window": False, "rope_theta": 5000000.0, "pad_token_id": 2},
    },
    "qwen2.5": {
        **ONE_KEY,
        **{"model_type": "qwen2", "use_mrope": False, "use_sliding_window": False, "head_dim": 4},
        **{"sliding_window": 32768, "max_window_layers": 1, "tie_word_embeddings": True},
    },
    "gemma-2b": {
        **ONE_KEY,
        **{"model_type": "gemma", "hidden_act": "gelu", "hidden_activation": None, "head_dim": 4},
    },
    "gemma-3": {
        **ONE_KEY,
        **{"model_type": "gemma3_text", "sliding_window": 4, "sliding_window_pattern": 2},
        **{"rope_local_base_freq": 10000, "head_dim": 4, "cache_implementation": "hybrid"},
    },
    "phi-3-mini": {
        **SMALL,
        **{"model_type": "phi3", "attention_bias": False, "sliding_window": 7, "pad_token_id": 2},
        **{"rope_scaling": None, "rope_theta": 10000.0, "original_max_position_embeddings": 32},
    },
    "stablelm-2": {
        **ONE_KEY,
        **{"model_type": "stablelm", "norm_eps": 1e-5, "partial_rotary_factor": 0.5},
    },
}
"""What stands in published files, with sizes that cost nothing."""
BESIDE = {
    "gpt2": {"n_ctx": 32},
    "smollm2": {"is_llama_config": True, "rope_interleaved": False},
    "smollm3": {"max_window_layers": 28},
    "qwen2.5": {"use_mrope": False},
    "gemma-2b": {"hidden_activation": None},
    "gemma-3": {"sliding_window_pattern": 2, "cache_implementation": "hybrid"},
    "phi-3-mini": {"attention_bias": False},
    "stablelm-2": {"norm_eps": 1e-5},
}
"""Keys of theirs that no class of transformers has."""


@pytest.fixture(params=FILES)
def published(request, tmp_path):
    """The name of a model, and a configuration of a run by its file, on some text."""
    (tmp_path / "data").mkdir()
    for split in ("train", "test"):
        (tmp_path / "data" / f"{split}.txt").write_text("To be, or not to be. " * 20)
    file = tmp_path / "config.json"
    file.write_text(json.dumps(FILES[request.param]))
    sections = {
        "model": {"name": "causal_lm", "config": str(file)},
        "task": {"name": "next_token"},
        "modules": {"count": 2},
        "head": {"name": "readout"},
        "data": {"name": "tokens", "root": str(tmp_path / "data"), "tokenizer": "bytes"}
        | {"sequence_length": 16, "batch_size": 4},
        "train": {"steps": 1, "seed": 0},
        "optimizer": {"name": "adamw", "lr": 0.01},
        "parallel": {"threads": 1},
        "run": {"dir": str(tmp_path / "run"), "quiet": True},
    }
    return request.param, sections


def use(folder):
    """What its commands make of a run."""
    from transformers import AutoModelForCausalLM

    export(folder, folder.parent / "out")
    with hf_config.quiet():
        model, problems = AutoModelForCausalLM.from_pretrained(
            folder.parent / "out", output_loading_info=True, local_files_only=True
        )
    assert not any(problems.values()), problems
    speaker = Generator(folder)
    assert isinstance("".join(speaker.text("To", 3)), str)
    ids = torch.arange(16)[None]
    assert torch.allclose(
        model(ids).logits[:, -1].flatten(), speaker.logits(ids).flatten(), atol=1e-5
    )
    facts = finished.evaluate(folder, lambda *_: None)
    assert train(RunFolder(folder).resumed(["train.steps=2"]), RankInfo())["steps"] == 2
    return facts


def test_a_run_by_a_published_file_can_be_used(published, tmp_path):
    name, sections = published
    facts = train(configfile.parse(sections), RankInfo())
    (tmp_path / "config.json").unlink()
    recorded = yaml.safe_load((tmp_path / "run" / "config.yaml").read_text())["model"]
    assert not BESIDE[name].keys() & recorded.keys()
    assert use(tmp_path / "run")["loss"] == pytest.approx(facts["loss"])


def test_a_run_that_has_recorded_all_of_a_file_can_be_used(published, tmp_path):
    """As earlier versions did; a further key is told, and changes nothing."""
    name, sections = published
    info = describe(configfile.parse(sections).data)
    config = draw(configfile.parse(sections), info).config
    args = {**config.model.args, **BESIDE[name]}
    sections["model"] = {"name": "causal_lm", **args}
    old = configfile.parse(sections)
    blueprint = draw(old, info)
    assert blueprint.config.model.args == args
    told = "".join(doubts(old, blueprint))
    assert all(f"model.{key}" in told for key in BESIDE[name])
    blocks = blueprint.backbone.blocks
    assert "".join(doubts(config, draw(config, info))) == ""
    assert str(blocks) == str(draw(config, info).backbone.blocks)
    if name == "gemma-3":  # one of them is enough, as they all are built the same way from here on
        facts = train(old, RankInfo())
        assert use(tmp_path / "run")["loss"] == pytest.approx(facts["loss"])


@pytest.mark.parametrize("name", BESIDE)
def test_what_is_typed_must_be_known(name):
    for key, value in BESIDE[name].items():
        with pytest.raises(UserError, match=f"unknown key 'model.{key}'"):
            hf_config.configuration(None, FILES[name]["model_type"], {key: value}, 260)


def test_what_a_class_uses_up_has_its_effect(tmp_path):
    """Older files say by a number which layers see all tokens."""
    file = tmp_path / "config.json"
    file.write_text(json.dumps(FILES["gemma-3"]))
    config = hf_config.configuration(file, None, {}, 260)
    assert config.layer_types == ["sliding_attention", "full_attention"]
    args = hf_config.arguments(config)
    again = hf_config.configuration(None, args.pop("architecture"), args, 260)
    assert again.layer_types == config.layer_types
    assert hf_config.arguments(again) == hf_config.arguments(config)


def test_a_size_of_heads_that_no_class_names_has_its_effect(tmp_path):
    file = tmp_path / "config.json"
    file.write_text(json.dumps(FILES["qwen2.5"]))
    config = hf_config.configuration(file, None, {}, 260)
    assert hf_config.arguments(config)["head_dim"] == config.head_dim == 4
