"""torch.compile for real, through the command line (minutes: marked long)."""

import json

import pytest
from torch._inductor import config as inductor

from pipeline_local.cli import main

CONFIG = """
model: {name: vit, patch_size: 8, num_layers: 2, num_heads: 2, hidden_dim: 32, mlp_dim: 64}
modules: {count: 3}
head: {name: auglocal}
reconcile: {weight: 0.1, every: 2, step: 0.003, direction: both, distance: relative}
data: {name: synthetic, batch_size: 32, limit: 128}
train: {steps: 8, log_every: 4, evaluate_every: 8}
optimizer: {lr: 0.05}
parallel: {threads: 1}
"""

TEXT = """
model: {name: causal_lm, architecture: llama, hidden_size: 16, intermediate_size: 32,
        num_hidden_layers: 3, num_attention_heads: 2}
task: {name: next_token}
modules: {count: 3}
head: {name: readout, depth: 1, refresh: 2}
reconcile: {weight: 0.1, every: 2, direction: both, distance: relative}
data: {name: synthetic_tokens, vocabulary: 50, sequence_length: 16, batch_size: 8}
train: {steps: 16, log_every: 4, evaluate_every: 16}
optimizer: {name: adamw, lr: 0.01}
parallel: {threads: 1}
"""


@pytest.mark.long
@pytest.mark.timeout(600)
@pytest.mark.filterwarnings("ignore:The .grad attribute:UserWarning")  # dynamo looks at it
@pytest.mark.parametrize("config", [CONFIG, TEXT], ids=["images", "text"])
def test_compiled_training_follows_the_eager_one(config, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "c.yaml").write_text(config)
    assert main(["train", "c.yaml", "run.dir=eager"]) == 0
    with inductor.patch(compile_threads=1):  # no pool of workers is left
        assert main(["train", "c.yaml", "run.dir=compiled", "compile=true"]) == 0
    eager, compiled = (
        json.loads((tmp_path / name / "summary.json").read_text()) for name in ("eager", "compiled")
    )
    assert compiled["loss"] == pytest.approx(eager["loss"], rel=1e-3)


def test_exact_with_compile_is_refused_with_the_remedy(tmp_path, capsys):
    (tmp_path / "c.yaml").write_text(CONFIG)
    command = ["train", str(tmp_path / "c.yaml"), "compile=true", "reconcile.estimator=exact"]
    assert main(command) == 2
    assert "use reconcile.estimator=shift or compile=false" in capsys.readouterr().err
