#!/usr/bin/env bash
# torch 2.14.1: `torch.distributed.checkpoint.save` takes a name that several ranks have, with plain tensors, for one
# replica and writes each once, by whichever rank has fewer bytes so far. Two pipeline stages whose layers have the same
# names (`0.weight`, `0.bias`) are saved without an error as one stage that is a mixture of both, a weight of one with
# the bias of the other, and both ranks load that. Of what is no tensor (a count, a data position) one rank's is left as
# well.
# Guess before running: each rank's own is saved, as torch.save does, or it is refused; at worst one rank's is kept.
# Seen 2026-11-29, Python 3.11, two processes on a CPU: rank 0's layer is all 0, rank 1's all 1; what each loads.
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install --quiet --disable-pip-version-check \
    torch==2.14.1 numpy==2.4.6

cat >"$folder/see.py" <<'PYTHON'
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
import torch.distributed.checkpoint as dcp
from torch import nn


def stage(value: float) -> nn.Module:
    layers = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4))
    for parameter in layers.parameters():
        nn.init.constant_(parameter, value)
    return layers


def work(rank: int) -> None:
    dist.init_process_group("gloo", init_method=f"file://{__file__}.store", rank=rank, world_size=2)
    dcp.save({"model": stage(rank).state_dict()}, checkpoint_id=f"{__file__}.checkpoint")
    fresh = stage(-1)
    state = {"model": fresh.state_dict()}
    dcp.load(state, checkpoint_id=f"{__file__}.checkpoint")
    fresh.load_state_dict(state["model"])
    loaded = {name: parameter.flatten()[0].item() for name, parameter in fresh.named_parameters()}
    everyone = [None, None]
    dist.all_gather_object(everyone, loaded)
    if rank == 0:
        for holder, values in enumerate(everyone):
            print(f"rank {holder} loads", *(f"{name}={value:g}" for name, value in values.items()), flush=True)
    dist.destroy_process_group()


if __name__ == "__main__":
    mp.spawn(work, nprocs=2)
PYTHON
seen=$("$folder/venv/bin/python" -W ignore "$folder/see.py" 2>"$folder/errors") || { cat "$folder/errors" >&2; exit 1; }
echo "$seen"
expected="rank 0 loads 0.weight=0 0.bias=1 2.weight=1 2.bias=0
rank 1 loads 0.weight=0 0.bias=1 2.weight=1 2.bias=0"
if [[ $seen != "$expected" ]]; then
    echo "the behaviour has changed; it was:" >&2
    echo "$expected" >&2
    exit 1
fi
