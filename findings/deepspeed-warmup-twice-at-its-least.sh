#!/usr/bin/env bash
# DeepSpeed 0.19.8: its warm-ups make two updates at their least rate, not one. With `warmup_min_lr` at 0, the default,
# the first two updates change no weight (AdamW's moments move on). A linear warm-up of four steps then has its full rate
# in the sixth update; the logarithmic one (the default of WarmupLR) and WarmupCosineLR, of the same `warmup_num_steps`,
# in the fifth. The scheduler counts from -1 and sets the least rate when it is made; its first step is number 0, which has
# the least rate again. A logarithm of (step + 1) is full one step earlier than a quarter of the step. That the very first
# update is at 0 is common elsewhere (transformers' schedules do it).
# Guess before running: 0, then 0.025, 0.05, 0.075 and 0.1 for the linear one; both kinds end in the same update.
# Seen 2026-11-29, Python 3.11, torch 2.14.1, a CPU: how far SGD moves a weight whose gradient is -1, by DeepSpeedEngine.
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install --quiet --disable-pip-version-check \
    torch==2.14.1 numpy==2.4.6 setuptools==80.9.0 wheel==0.45.1 ninja==1.13.0
"$folder/venv/bin/python" -m pip install --quiet --disable-pip-version-check --no-build-isolation deepspeed==0.19.8

cd "$folder"
export RANK=0 WORLD_SIZE=1 LOCAL_RANK=0 MASTER_ADDR=localhost MASTER_PORT=29644 DS_ACCELERATOR=cpu
PATH="$folder/venv/bin:$PATH" python - >"$folder/output" <<'PYTHON'
import deepspeed
import torch


def updates(kind: str, **parameters: object) -> list[float]:
    layer = torch.nn.Linear(1, 1, bias=False)
    config = {
        "train_batch_size": 1,
        "gradient_clipping": 0.0,
        "optimizer": {"type": "SGD", "params": {"lr": 0.1}},
        "scheduler": {"type": kind, "params": {"warmup_num_steps": 4, **parameters}},
    }
    engine, *_ = deepspeed.initialize(model=layer, config=config, model_parameters=layer.parameters())
    torch.nn.init.zeros_(layer.weight)
    seen = [0.0]
    for _ in range(8):
        engine.backward(-engine(torch.ones(1, 1)).sum())
        engine.step()
        seen.append(layer.weight.item())
    return [round(after - before, 3) for before, after in zip(seen, seen[1:])]


peak = {"warmup_max_lr": 0.1}
print("seen WarmupLR linear", *updates("WarmupLR", warmup_type="linear", **peak))
print("seen WarmupLR log", *updates("WarmupLR", **peak))
print("seen WarmupDecayLR linear", *updates("WarmupDecayLR", warmup_type="linear", total_num_steps=8, **peak))
print("seen WarmupCosineLR", *updates("WarmupCosineLR", total_num_steps=8))
PYTHON
seen=$(grep ^seen "$folder/output")
echo "$seen"
expected="seen WarmupLR linear 0.0 0.0 0.025 0.05 0.075 0.1 0.1 0.1
seen WarmupLR log 0.0 0.0 0.05 0.079 0.1 0.1 0.1 0.1
seen WarmupDecayLR linear 0.0 0.0 0.025 0.05 0.075 0.1 0.075 0.05
seen WarmupCosineLR 0.0 0.0 0.05 0.079 0.1 0.085 0.05 0.015"
if [[ $seen != "$expected" ]]; then
    echo "the behaviour has changed; it was:" >&2
    echo "$expected" >&2
    exit 1
fi
