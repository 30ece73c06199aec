"""An exit of a language model is a model of transformers'."""

import pytest
import torch

from pipeline_local.configfile import configfile
from pipeline_local.errors import UserError
from pipeline_local.finished import finished
from pipeline_local.finished.exits.network import ExitNetwork
from pipeline_local.finished.exporting.export import export
from pipeline_local.models import hf_config
from pipeline_local.ranks.rank import RankInfo
from pipeline_local.training.train import train

READOUT = {"name": "readout", "depth": 1, "refresh": 2}


def run(folder, /, head=READOUT, cuts=(2,), **model):
    tree = {
        "model": {
            "name": "causal_lm",
            "architecture": "llama",
            "hidden_size": 16,
            "intermediate_size": 24,
            "num_attention_heads": 2,
            "num_hidden_layers": 3,
            **model,
        },
        "data": {"name": "synthetic_tokens", "vocabulary": 40, "sequence_length": 12, "limit": 32},
        "task": {"name": "next_token"},
        "head": head,
        "modules": {"cuts": list(cuts)},
        "train": {"steps": 4},
        "optimizer": {"name": "adamw", "lr": 0.05, "warmup": 0},
        "parallel": {"threads": 1},
        "run": {"dir": str(folder)},
    }
    tree["data"]["batch_size"] = 8
    train(configfile.parse(tree), RankInfo())
    return folder


@pytest.mark.parametrize(
    ("head", "model", "layers"),
    [
        (READOUT, {}, 2),
        ({"name": "readout", "depth": 0, "private": True}, {}, 1),
        ({"name": "readout", "depth": 2}, {"architecture": "smollm3"}, 3),
        (READOUT, {"tie_word_embeddings": True, "architecture": "qwen3", "head_dim": 8}, 2),
    ],
    ids=lambda value: str(value.get("architecture", "")) if isinstance(value, dict) else None,
)
def test_it_gives_the_logits_of_the_exit(tmp_path, head, model, layers):
    from transformers import AutoModelForCausalLM

    folder = run(tmp_path / "run", head, **model)
    export(folder, tmp_path / "out", exit=1)
    with hf_config.quiet():
        found, loading = AutoModelForCausalLM.from_pretrained(
            tmp_path / "out", output_loading_info=True, local_files_only=True
        )
    assert not any(loading.values()), loading
    assert found.config.num_hidden_layers == layers
    _, modules, _ = finished.load(folder)
    assert modules[0].head.temperature != 1
    ids = torch.randint(40, (3, 12), generator=torch.Generator().manual_seed(0))
    wanted = ExitNetwork(modules[:1])(ids)
    torch.testing.assert_close(found.eval()(ids).logits, wanted, rtol=1e-4, atol=1e-5)
    weight = modules[0].head.weight.clone()
    assert torch.equal(finished.load(folder)[1][0].head.weight, weight), "the run is as it was"


def test_the_last_exit_is_the_whole_model(tmp_path):
    folder = run(tmp_path / "run")
    whole, last = export(folder, tmp_path / "all"), export(folder, tmp_path / "last", exit=2)
    assert whole.keys() == last.keys()
    texts = [(tmp_path / name / "config.json").read_text() for name in ("all", "last")]
    assert texts[0] == texts[1]


@pytest.mark.parametrize(
    ("head", "cuts", "message"),
    [
        ({"name": "linear"}, (2,), "needs head.name=readout, got linear at module 1"),
        ({"name": "readout", "depth": 0}, (1, 2), "--exit: module 1 has no layer, only"),
    ],
)
def test_what_is_no_model_is_refused(tmp_path, head, cuts, message):
    folder = run(tmp_path / "run", head, cuts)
    with pytest.raises(UserError, match=message):
        export(folder, tmp_path / "out", exit=1)
    assert not (tmp_path / "out").exists()
