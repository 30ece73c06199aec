#!/usr/bin/env bash
# transformers 5.24.0: `position_ids` that begin again at 0 keep packed documents apart under eager and sdpa attention
# only if no cache is made. `use_cache` is true by default, so `model(input_ids, position_ids=...)` lets documents see
# those before them, in train and in eval; with `use_cache=False`, which the Trainer sets for itself and gradient
# checkpointing in training, they do not: a model may be trained on parted documents and evaluated on joined ones. An
# attention mask of ones, which changes nothing elsewhere, also joins them (that is known, pull request 46634).
# Guess before running: `use_cache` decides whether keys and values are returned, not what the logits are.
# Seen 2026-11-29, Python 3.11, torch 2.14.1, a CPU: how far the second document's logits are from those it has alone.
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install --quiet --disable-pip-version-check \
    torch==2.14.1 numpy==2.4.6 transformers==5.24.0

cat >"$folder/see.py" <<'PYTHON'
import torch
from transformers import AutoModelForCausalLM, GPT2Config, LlamaConfig, Qwen2Config

SIZES = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
SMALL = {"vocab_size": 50, "bos_token_id": 0, "eos_token_id": 0}
for config in (
    LlamaConfig(**SIZES, **SMALL, num_key_value_heads=4),
    Qwen2Config(**SIZES, **SMALL, num_key_value_heads=4),
    GPT2Config(n_embd=32, n_layer=2, n_head=4, **SMALL),
):
    for attention in ("eager", "sdpa"):
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_config(config, attn_implementation=attention).eval()
        ids = torch.randint(1, 50, (1, 12))
        positions = torch.tensor([[*range(5), *range(7)]])
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.mul_(5 if parameter.ndim > 1 else 1)
            alone = model(ids[:, 5:]).logits

            def differs(**options: object) -> bool:
                packed = model(ids, position_ids=positions, **options).logits[:, 5:]
                return bool((packed - alone).abs().max() > 0.1)

            ones = torch.ones_like(ids)
            print(
                f"{config.model_type} {attention}: the first document is seen by default {differs()},",
                f"use_cache=False {differs(use_cache=False)}, and ones {differs(use_cache=False, attention_mask=ones)}",
            )
PYTHON
seen=$("$folder/venv/bin/python" -W ignore "$folder/see.py" 2>"$folder/errors") || { cat "$folder/errors" >&2; exit 1; }
echo "$seen"
expected="llama eager: the first document is seen by default True, use_cache=False False, and ones True
llama sdpa: the first document is seen by default True, use_cache=False False, and ones True
qwen2 eager: the first document is seen by default True, use_cache=False False, and ones True
qwen2 sdpa: the first document is seen by default True, use_cache=False False, and ones True
gpt2 eager: the first document is seen by default True, use_cache=False False, and ones True
gpt2 sdpa: the first document is seen by default True, use_cache=False False, and ones True"
if [[ $seen != "$expected" ]]; then
    echo "the behaviour has changed; it was:" >&2
    echo "$expected" >&2
    exit 1
fi
