#!/usr/bin/env bash
# DeepSpeed 0.19.8, ZeRO 1 and 2 in float16 with a dynamic loss scale: in the step in which the scale doubles, gradients are
# divided by the new scale, though the loss was multiplied by the old one. SGD then moves half as far in that step, without a
# word. It is one step in each `loss_scale_window` (1000 by default) without an overflow. `step` in
# deepspeed/runtime/zero/stage_1_and_2.py updates the scale first; a fix of 2023 (pull request 2695) covers the norm alone.
# Guess before running: the scale that multiplied a loss divides its gradients; when it grows changes nothing but rounding.
# Seen 2026-11-29, Python 3.11, torch 2.14.1, a CPU with avx512_fp16 (DeepSpeed refuses float16 on others; a GPU does, too):
# with a gradient of 1 and a rate of 1, updates are 1.0, but 0.5 where the scale grows.
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install --quiet --disable-pip-version-check \
    torch==2.14.1 numpy==2.4.6 setuptools==80.9.0 wheel==0.45.1 ninja==1.13.0
"$folder/venv/bin/python" -m pip install --quiet --disable-pip-version-check --no-build-isolation deepspeed==0.19.8

cd "$folder"
export RANK=0 WORLD_SIZE=1 LOCAL_RANK=0 MASTER_ADDR=localhost MASTER_PORT=29642 TORCH_EXTENSIONS_DIR="$folder/built"
PATH="$folder/venv/bin:$PATH" python - <<'PYTHON'
import deepspeed
import torch
from deepspeed.accelerator import get_accelerator


def updates(stage: int, window: int) -> list[float]:
    """How far SGD of rate 1 moves a weight of 0 whose gradient is 1, in each of six steps."""
    model = torch.nn.Linear(1, 1, bias=False)
    torch.nn.init.zeros_(model.weight)
    config = {
        "train_batch_size": 1,
        "gradient_clipping": 0.0,
        "zero_optimization": {"stage": stage},
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
        "fp16": {"enabled": True, "initial_scale_power": 4, "loss_scale_window": window},
    }
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    engine, *_ = deepspeed.initialize(model=model, optimizer=optimizer, config=config)
    moved = []
    for _ in range(6):
        before = engine.module.weight.item()
        one = torch.ones(1, 1, dtype=torch.float16, device=get_accelerator().current_device_name())
        engine.backward(engine(one).sum())
        engine.step()
        moved.append(before - engine.module.weight.item())
    return moved


for stage in (1, 2):
    constant, growing = updates(stage, window=1000), updates(stage, window=2)
    print(f"ZeRO {stage}: updates {constant}; where the scale grows every second step {growing}")
    assert constant == [1.0] * 6
    assert growing == [1.0, 1.0, 0.5, 1.0, 0.5, 1.0], "the behaviour has changed"
PYTHON
