#!/usr/bin/env bash
# torch 2.14.1: a learning rate given as a tensor (as `capturable` and compiled optimizers want it) is not copied: all
# groups of an optimizer, and all optimizers that were given it, hold the one tensor, and the schedulers write into it.
# LambdaLR with one function for each group then gives all groups the last group's rate; one scheduler for each of two
# optimizers (one for each stage or layer) makes the rate fall twice in each step. Numbers, and a tensor for each group,
# are right.
# Guess before running: a group's rate is its own, as it is when it is a number.
# Seen 2026-11-29, Python 3.11, a CPU: the rates that the third of three updates used.
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install --quiet --disable-pip-version-check \
    torch==2.14.1 numpy==2.4.6

cat >"$folder/see.py" <<'PYTHON'
import torch
from torch.optim import SGD
from torch.optim.lr_scheduler import ExponentialLR, LambdaLR


def rates(kind: str) -> None:
    def rate():
        return 1.0 if kind == "number" else torch.tensor(1.0)

    one, two = torch.nn.Parameter(torch.ones(1)), torch.nn.Parameter(torch.ones(1))
    lr = rate()
    if kind == "tensor each":
        groups = [{"params": [one], "lr": rate()}, {"params": [two], "lr": rate()}]
        pair = [SGD([one], lr=rate()), SGD([two], lr=rate())]
    else:
        groups = [{"params": [one]}, {"params": [two]}]
        pair = [SGD([one], lr=lr), SGD([two], lr=lr)]
    both = SGD(groups, lr=rate())
    scheduler = LambdaLR(both, [lambda step: 1.0, lambda step: 0.5**step])
    schedulers = [ExponentialLR(optimizer, 0.5) for optimizer in pair]
    grouped, single = [], []
    for _ in range(3):
        grouped.append([float(group["lr"]) for group in both.param_groups])
        both.step()
        scheduler.step()
        used = []
        for optimizer, falling in zip(pair, schedulers):
            used.append(float(optimizer.param_groups[0]["lr"]))
            optimizer.step()
            falling.step()
        single.append(used)
    print(f"{kind}: third update, groups at 1 and 1/4: {grouped[2]}, two optimizers at 1/4: {single[2]}")


for kind in ("number", "tensor each", "tensor"):
    rates(kind)
PYTHON
seen=$("$folder/venv/bin/python" -W ignore "$folder/see.py" 2>"$folder/errors") || { cat "$folder/errors" >&2; exit 1; }
echo "$seen"
expected="number: third update, groups at 1 and 1/4: [1.0, 0.25], two optimizers at 1/4: [0.25, 0.25]
tensor each: third update, groups at 1 and 1/4: [1.0, 0.25], two optimizers at 1/4: [0.25, 0.25]
tensor: third update, groups at 1 and 1/4: [0.25, 0.25], two optimizers at 1/4: [0.0625, 0.03125]"
if [[ $seen != "$expected" ]]; then
    echo "the behaviour has changed; it was:" >&2
    echo "$expected" >&2
    exit 1
fi
