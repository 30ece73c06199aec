#!/usr/bin/env bash
# torch 2.14.1: `torch.autograd.grad` gives one and the same tensor as the gradient of both terms of a sum.
# `backward` gives each parameter its own. So whoever takes gradients by `autograd.grad`, puts them into `.grad`
# and clips, clips twice: `clip_grad_norm_` multiplies in place, parameter by parameter.
# Guess before running: the tensors are separate, as after `backward`; the norm is 1 both times.
# Seen 2026-11-28, Python 3.11, CPU: 1.0 after `backward`, 0.118 after `autograd.grad`.
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install --quiet --disable-pip-version-check torch==2.14.1 numpy==2.4.6

cd "$folder"
"$folder/venv/bin/python" - <<'PYTHON'
import torch
from torch import nn

one, other = nn.Parameter(torch.zeros(4)), nn.Parameter(torch.zeros(4))


def clipped() -> float:
    nn.utils.clip_grad_norm_([one, other], 1.0)
    norm = torch.cat([one.grad, other.grad]).norm().item()
    one.grad = other.grad = None
    return round(norm, 3)


(3 * (one + other)).sum().backward()
by_backward = clipped()
one.grad, other.grad = torch.autograd.grad((3 * (one + other)).sum(), [one, other])
by_grad = clipped()
print(f"norm after clipping to 1: {by_backward} after backward, {by_grad} after autograd.grad")
assert (by_backward, by_grad) == (1.0, 0.118), "the behaviour has changed"
PYTHON
