#!/usr/bin/env bash
# torch 2.14.1: a gloo receive that is posted while `torch.profiler` runs, and arrives after `stop()`, writes its end into
# memory that is free by then. The process dies later, in any place: segmentation fault, abort, bus error. Pausing with
# `toggle_collection_dynamic(False, ...)` and stopping when nothing is under way is safe, and so is posting receives between
# `torch.autograd._enable_record_function(False)` and `(True)`: then they are not recorded.
# Guess before running: what arrives after `stop()` is missing in the profile, and nothing else happens.
# Seen 2026-11-29, Python 3.11, CPU: a rank dies by signal 11 or 6 where it stops at once, and none where it pauses.
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install --quiet --disable-pip-version-check torch==2.14.1 numpy==2.4.6

cd "$folder"
cat > ranks.py <<'PYTHON'
import gc
import sys
from collections import deque

import torch
import torch.distributed as dist
from torch.profiler import ProfilerActivity, profile

rank, pauses = int(sys.argv[1]), sys.argv[2] == "pause"
torch.set_num_threads(1)
dist.init_process_group("gloo", init_method=f"file://{sys.argv[3]}", rank=rank, world_size=2)
group = dist.new_group([0, 1])
layer, under_way = torch.nn.Conv2d(1, 16, 3), deque()


def step(most):
    x = torch.randn(32, 1, 8, 8)
    layer(x).sum().backward()
    under_way.append((dist.irecv(x, 0, group) if rank else dist.isend(x, 1, group), x))
    while len(under_way) > most:  # one is always posted ahead
        under_way.popleft()[0].wait()


activities = [ProfilerActivity.CPU]
profiler = profile(activities=activities)
profiler.start()
for _ in range(40):
    step(1)
if pauses:
    profiler.toggle_collection_dynamic(False, activities)
    step(0)
profiler.stop()
profiler.export_chrome_trace(f"{rank}.json")
del profiler
for number in range(300):
    step(1)
    if number % 50 == 0:
        gc.collect()
step(0)
dist.barrier()
PYTHON
"$folder/venv/bin/python" - <<'PYTHON'
import subprocess
import sys
from pathlib import Path

died = {"stop": 0, "pause": 0}
for number in range(3):
    for way in died:
        store = str(Path(f"{way}{number}").absolute())
        commands = [[sys.executable, "ranks.py", str(rank), way, store] for rank in range(2)]
        ranks = [subprocess.Popen(command, stderr=subprocess.DEVNULL) for command in commands]
        died[way] += any(rank.wait() < 0 for rank in ranks)
assert Path("0.json").exists() and Path("1.json").exists()
print(f"of 3 runs, killed by a signal: {died['stop']} stopped at once, {died['pause']} paused before")
assert died["stop"] > 0 == died["pause"], "the behaviour has changed"
PYTHON
