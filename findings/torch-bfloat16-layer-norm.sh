#!/usr/bin/env bash
# torch 2.14.1 on CPUs: the gradient of a LayerNorm's bias in bfloat16 stops growing at 256 times one row's, also
# under autocast, whose weights are float32: each thread adds up its rows in bfloat16, where 256 + 1 = 256.
# CUDA's autocast runs layer norms in float32; the CPU's does not.
# Guess before running: sums over rows are kept in float32, as matrix products and batch norms keep them.
# Seen 2026-11-28, Python 3.11, one thread, 4096 rows whose gradients are 1: 256.0, and 4096.0 in float32.
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install --quiet --disable-pip-version-check torch==2.14.1 numpy==2.4.6

cd "$folder"
"$folder/venv/bin/python" - <<'PYTHON'
import torch
from torch import nn

torch.set_num_threads(1)


def bias_gradient(low: bool) -> float:
    torch.manual_seed(0)
    norm, linear = nn.LayerNorm(8), nn.Linear(8, 8)
    with torch.autocast("cpu", torch.bfloat16, enabled=low):
        y = norm(linear(torch.randn(4096, 8)))
    y.sum().backward()
    return norm.bias.grad[0].item()


low, full = bias_gradient(True), bias_gradient(False)
print(f"gradient of the bias, a sum of 4096 ones: {low} under autocast, {full} in float32")
assert (low, full) == (256.0, 4096.0), "the behaviour has changed"
PYTHON
