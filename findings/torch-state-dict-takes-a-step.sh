#!/usr/bin/env bash
# torch 2.14.1: `torch.distributed.checkpoint`'s `get_optimizer_state_dict` (and so `get_state_dict`), asked before the
# first update, takes a step with zero gradients at rate 0 and keeps what that left in the state. That it counts as an
# update of Adam is known (pytorch issue 164929). It is not only the counter: SGD with dampening then begins with a
# momentum of zero, so its first update is a tenth at dampening 0.9; Rprop, whose step sizes begin at the rate, begins
# with millionths; the first update of ASGD, which keeps the rate 0 for one step, is none. SGD with momentum,
# Adagrad and Muon go on as if nothing had been asked.
# Guess before running: a getter changes nothing; at most Adam's bias correction is one step ahead.
# Seen 2026-11-29, Python 3.11, a CPU: lengths of the first three updates, over those of a run that did not ask.
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install --quiet --disable-pip-version-check torch==2.14.1 numpy==2.4.6

seen=$("$folder/venv/bin/python" - <<'PYTHON'
from functools import partial

import torch
from torch import nn, optim
from torch.distributed.checkpoint.state_dict import get_optimizer_state_dict


def updates(make, asks: bool) -> torch.Tensor:
    torch.manual_seed(0)
    model = nn.Linear(4, 4, bias=False)
    optimizer = make(model.parameters(), lr=0.01)
    if asks:
        get_optimizer_state_dict(model, optimizer)
    lengths = []
    for _ in range(3):
        before = model.weight.detach().clone()
        optimizer.zero_grad()
        model(torch.randn(8, 4)).pow(2).sum().backward()
        optimizer.step()
        lengths.append((model.weight.detach() - before).norm())
    return torch.stack(lengths)


for name, make in {
    "SGD, momentum": partial(optim.SGD, momentum=0.9),
    "Adagrad": optim.Adagrad,
    "Muon": optim.Muon,
    "AdamW": optim.AdamW,
    "SGD, momentum, dampening": partial(optim.SGD, momentum=0.9, dampening=0.9),
    "ASGD": optim.ASGD,
    "Rprop": optim.Rprop,
}.items():
    ratios = updates(make, asks=True) / updates(make, asks=False)
    print(name, *(f"{ratio:.2f}" for ratio in ratios.tolist()))
PYTHON
)
echo "$seen"
expected="SGD, momentum 1.00 1.00 1.00
Adagrad 1.00 1.00 1.00
Muon 1.00 1.00 1.00
AdamW 0.74 0.86 0.91
SGD, momentum, dampening 0.10 0.17 0.24
ASGD 0.00 1.12 1.36
Rprop 0.00 0.00 0.00"
if [[ $seen != "$expected" ]]; then
    echo "the behaviour has changed; it was:" >&2
    echo "$expected" >&2
    exit 1
fi
