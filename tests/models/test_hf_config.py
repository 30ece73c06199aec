"""The configuration of a language model, as transformers takes it and as we do."""

import json

import pytest

from pipeline_local.errors import UserError
from pipeline_local.models import hf_config

VOCABULARY = 40
SIZES = {
    "gpt2": ("n_embd", "hidden_size", "n_head", "n_layer", "n_positions", "n_inner", "vocab_size"),
    "qwen3": ("hidden_size", "num_attention_heads", "num_key_value_heads", "head_dim"),
    "llama": ("hidden_size", "num_hidden_layers", "intermediate_size", "max_position_embeddings"),
    "mistral": ("num_attention_heads", "sliding_window"),
}


@pytest.mark.parametrize("value", [0, -1, 1.5, True])
@pytest.mark.parametrize("architecture", SIZES)
def test_a_size_is_a_whole_number_of_at_least_1(tmp_path, architecture, value):
    """transformers takes most of them, and fails later or builds layers of nothing."""
    wanted = f"should be a whole number of at least 1, got {value}; "
    for key in SIZES[architecture]:
        with pytest.raises(UserError) as caught:
            hf_config.configuration(None, architecture, {key: value}, VOCABULARY)
        assert str(caught.value) == f"model.{key}: {wanted}change it"
        facts = {"model_type": architecture, key: value}
        (tmp_path / "config.json").write_text(json.dumps(facts))
        with pytest.raises(UserError) as caught:
            hf_config.configuration(tmp_path, None, {}, VOCABULARY)
        assert str(caught.value) == (
            f"model.{key}: {wanted}correct model.config, or set model.{key}"
        )
        own = {"hidden_size": 64, "num_attention_heads": 4}
        hf_config.configuration(tmp_path, None, {**own, key: 64}, VOCABULARY)


def test_a_window_that_is_not_used_may_be_of_any_size():
    unused = {"sliding_window": 0, "use_sliding_window": False}
    assert hf_config.configuration(None, "qwen3", unused, VOCABULARY).sliding_window is None


@pytest.mark.parametrize("count", [3, 8, 12])
def test_lists_with_an_entry_per_layer_follow_the_number_of_layers(tmp_path, count):
    """SmolLM3's file says of each layer whether it has rotary embeddings: 1, or 0."""
    rotary = [0, 1, 1, 0, 1, 1, 1, 0]
    layers = {
        "num_hidden_layers": 8,
        "no_rope_layers": rotary,
        "layer_types": 8 * ["full_attention"],
    }
    file = tmp_path / "config.json"
    file.write_text(json.dumps({"model_type": "smollm3", "pad_token_id": None, **layers}))
    config = hf_config.configuration(file, None, {"num_hidden_layers": count}, 50)
    assert len(config.no_rope_layers) == len(config.layer_types) == count
    assert config.no_rope_layers[:count] == rotary[:count] or count > len(rotary)
    said = {"num_hidden_layers": 3, "no_rope_layers": [1, 1, 0]}
    assert hf_config.configuration(file, None, said, 50).no_rope_layers == [1, 1, 0]


def test_tokens_of_another_tokenizer_are_none_where_there_may_be_none():
    """The rest keeps what its class says, as nothing else is taken."""
    assert hf_config.configuration(None, "llama", {}, VOCABULARY).bos_token_id is None
    config = hf_config.configuration(None, "cwm", {}, VOCABULARY)
    assert (config.bos_token_id, config.pad_token_id) == (128000, None)
