#!/usr/bin/env bash
# torch 2.14.1 and transformers 5.24.0: torch's Muon moves a layer by how its weight lies in memory. GPT-2's layers are
# `Conv1D`s, whose weights are [in, out]; a `Linear` has [out, in]. Given the same function and gradient, Muon
# orthogonalises both alike, but scales the step by sqrt(max(1, rows / columns)) (`adjust_lr_fn="original"`, its default).
# So GPT-2's up-projections move half as far as those of a Linear would, and its down-projections twice as far.
# `adjust_lr_fn="match_rms_adamw"` knows no sides. Muon of other libraries has the same formula, for Linears.
# Guess before running: the same step for both, as orthogonalising and transposing can be exchanged.
# Seen 2026-11-29, Python 3.11, a CPU: lengths of the steps of Linear and Conv1D, and the cosine between them.
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install --quiet --disable-pip-version-check \
    torch==2.14.1 numpy==2.4.6 transformers==5.24.0

seen=$("$folder/venv/bin/python" - <<'PYTHON'
import torch
from torch import nn
from transformers.pytorch_utils import Conv1D


def steps(inputs: int, outputs: int, how: str | None) -> str:
    torch.manual_seed(0)
    linear, conv = nn.Linear(inputs, outputs, bias=False), Conv1D(outputs, inputs)
    with torch.no_grad():
        conv.weight.copy_(linear.weight.T)
        conv.bias.zero_()
    x, target = torch.randn(512, inputs), torch.randn(512, outputs)
    moved = []
    for layer in (linear, conv):
        before = layer.weight.detach().clone()
        optimizer = torch.optim.Muon([layer.weight], lr=0.01, weight_decay=0.0, adjust_lr_fn=how)
        nn.functional.mse_loss(layer(x), target).backward()
        optimizer.step()
        moved.append(layer.weight.detach() - before)
    first, second = moved[0], moved[1].T
    cosine = nn.functional.cosine_similarity(first.flatten(), second.flatten(), dim=0)
    return f"{second.norm() / first.norm():.2f} {cosine:.2f}"


for how in (None, "match_rms_adamw"):
    print(how, "up", steps(64, 256, how), "down", steps(256, 64, how))
PYTHON
)
echo "$seen"
expected="None up 0.50 1.00 down 2.00 1.00
match_rms_adamw up 1.00 1.00 down 1.00 1.00"
if [[ $seen != "$expected" ]]; then
    echo "the behaviour has changed; it was:" >&2
    echo "$expected" >&2
    exit 1
fi
