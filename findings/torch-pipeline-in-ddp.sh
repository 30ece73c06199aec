#!/usr/bin/env bash
# torch 2.14.1: a pipeline of `torch.distributed.pipelining` whose stages are in DistributedDataParallel does one step and
# fails in the second, on the first stage, with an internal assertion about "rebuilt parameter indices": twice as many
# as it has parameters. It counts every gradient of both microbatches. Other options make it go: `find_unused_parameters=True`.
# The schedules have code of their own for stages in DDP, so this is meant to work.
# Guess before running: four steps pass, with or without the option.
# Seen 2026-11-29, Python 3.11, four processes on a CPU over gloo, 1F1B with two microbatches.
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install --quiet --disable-pip-version-check torch==2.14.1 numpy==2.4.6

cd "$folder"
cat >train.py <<'PYTHON'
import os
import sys

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.pipelining import PipelineStage, Schedule1F1B
from torch.nn.parallel import DistributedDataParallel

dist.init_process_group("gloo")
rank = dist.get_rank()
stage, replica = divmod(rank, 2)
pipelines = [dist.new_group([0, 2]), dist.new_group([1, 3])]
replicas = [dist.new_group([0, 1]), dist.new_group([2, 3])]
part = DistributedDataParallel(
    nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4)),
    process_group=replicas[stage],
    find_unused_parameters=sys.argv[1] == "unused",
)
device = torch.device("cpu")
pipeline = PipelineStage(part, stage, 2, device, group=pipelines[replica])
schedule = Schedule1F1B(pipeline, 2, nn.functional.mse_loss)
x = torch.randn(8, 4)
for step in range(4):
    try:
        schedule.step(*([x] if stage == 0 else []), target=x if stage == 1 else None)
    except RuntimeError as error:
        if stage == 0:
            found = "rebuilt parameter indices" in f"{error} {error.__cause__}"
            print(f"{sys.argv[1]}: step {step + 1} fails: {found}", flush=True)
        os._exit(0)
    part.zero_grad()
if rank == 0:
    print(f"{sys.argv[1]}: all steps pass", flush=True)
PYTHON

run() {
    "$folder/venv/bin/torchrun" --standalone --nproc-per-node 4 train.py "$1" 2>/dev/null | sort -u
}

seen=$(
    run plain
    run unused
)
echo "$seen"
[[ $seen == $'plain: step 2 fails: True\nunused: all steps pass' ]]
