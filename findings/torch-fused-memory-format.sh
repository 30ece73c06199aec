#!/usr/bin/env bash
# torch 2.14.1: on a CPU the fused Adam, AdamW, SGD and Adagrad read weight, gradient and state in the order of memory
# and look at no strides. `load_state_dict` keeps the strides of the saved state. So a convolution trained in
# channels_last and resumed in the usual format, or the other way round, gets each moment applied to another weight,
# without an error; so does a weight whose gradient is put there in another order (`autograd.grad` of a transposed use).
# The loops, foreach or not, go by index; on CUDA the fused ones refuse it (pytorch issue 110758).
# Guess before running: fused is the same up to rounding, or refused as on CUDA.
# Seen 2026-11-30, Python 3.11, a CPU: cosine between the first update after resuming and the right one; saved and
# resumed in: usual and usual, channels_last both, channels_last then usual, usual then channels_last.
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install --quiet --disable-pip-version-check \
    torch==2.14.1 numpy==2.4.6

cat >"$folder/see.py" <<'PYTHON'
import copy

import torch
from torch.nn.functional import cosine_similarity
from torch.optim import SGD, Adagrad, Adam, AdamW

torch.manual_seed(0)
start = torch.randn(6, 5, 3, 3)
target = torch.randn(6, 5, 3, 3)


def step(weight: torch.nn.Parameter, optimizer: torch.optim.Optimizer) -> None:
    optimizer.zero_grad()
    (weight - target).pow(2).sum().backward()
    optimizer.step()


def resumed(
    kind: type, fused: bool, formats: tuple[torch.memory_format, torch.memory_format], **options
) -> torch.Tensor:
    """What the first update after resuming adds to the weight."""
    weight = torch.nn.Parameter(start.clone(memory_format=formats[0]))
    how = {"fused": True} if fused else {"foreach": False}
    optimizer = kind([weight], lr=0.01, **options, **how)
    for _ in range(5):
        step(weight, optimizer)
    saved = copy.deepcopy((weight.data, optimizer.state_dict()))
    weight = torch.nn.Parameter(torch.empty(6, 5, 3, 3).to(memory_format=formats[1]))
    weight.data.copy_(saved[0])
    optimizer = kind([weight], lr=0.01, **options, **how)
    optimizer.load_state_dict(saved[1])
    step(weight, optimizer)
    return (weight.detach() - saved[0]).flatten()


plain, last = torch.contiguous_format, torch.channels_last
for kind, options in ((AdamW, {}), (Adam, {}), (SGD, {"momentum": 0.9}), (Adagrad, {})):
    right = resumed(kind, False, (plain, plain), **options)
    cosines = [
        cosine_similarity(resumed(kind, fused, formats, **options), right, dim=0)
        for fused in (False, True)
        for formats in ((plain, plain), (last, last), (last, plain), (plain, last))
    ]
    print(f"{kind.__name__}: loop", *(f"{cosine:.2f}" for cosine in cosines[:4]), end="; ")
    print("fused", *(f"{cosine:.2f}" for cosine in cosines[4:]))
PYTHON
seen=$("$folder/venv/bin/python" -W ignore "$folder/see.py" 2>"$folder/errors") || { cat "$folder/errors" >&2; exit 1; }
echo "$seen"
expected="AdamW: loop 1.00 1.00 1.00 1.00; fused 1.00 1.00 0.39 0.36
Adam: loop 1.00 1.00 1.00 1.00; fused 1.00 1.00 0.39 0.36
SGD: loop 1.00 1.00 1.00 1.00; fused 1.00 1.00 0.30 0.30
Adagrad: loop 1.00 1.00 1.00 1.00; fused 1.00 1.00 0.85 0.84"
if [[ $seen != "$expected" ]]; then
    echo "the behaviour has changed; it was:" >&2
    echo "$expected" >&2
    exit 1
fi
