#!/usr/bin/env bash
# torch 2.14.1: how many operations `FlopCounterMode` counts in a layer depends on how the layer is run. A
# TransformerEncoderLayer in evaluation mode under `no_grad` counts nothing at all, not even its linear layers, since it
# runs as one fused operator that the counter does not know; with gradients enabled, the same layer in the same mode
# counts its linear layers, and on the meta device its attention as well. An LSTM counts nothing on a CPU, a GRU does.
# Guess before running: the count follows from the shapes, so one number each: 2228224 for the layer; LSTM 4/3 of GRU.
# Seen 2026-11-29, Python 3.11, a CPU. That attention alone is not counted on CPUs is reported (pytorch#195460).
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install --quiet --disable-pip-version-check torch==2.14.1 numpy==2.4.6

seen=$("$folder/venv/bin/python" - <<'PYTHON'
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode


def flops(layer, x, grad):
    with torch.set_grad_enabled(grad), FlopCounterMode(display=False) as counter:
        layer(x)
    return counter.get_total_flops()


for device in ("cpu", "meta"):
    layer = nn.TransformerEncoderLayer(64, 4, 128, dropout=0.0, batch_first=True, device=device)
    x = torch.zeros(2, 16, 64, device=device)
    for mode in (layer.train, layer.eval):
        mode()
        counts = [flops(layer, x, grad) for grad in (True, False)]
        print(device, mode.__name__, *counts)
for kind in (nn.GRU, nn.LSTM):
    layer = kind(32, 32, batch_first=True)
    print(kind.__name__, *[flops(layer, torch.zeros(2, 8, 32), grad) for grad in (True, False)])
PYTHON
)
echo "$seen"
expected="cpu train 2097152 2097152
cpu eval 2097152 0
meta train 2228224 2228224
meta eval 2228224 2228224
GRU 196608 196608
LSTM 0 0"
if [[ $seen != "$expected" ]]; then
    echo "the behaviour has changed; it was:" >&2
    echo "$expected" >&2
    exit 1
fi
