#!/usr/bin/env bash
# torch 2.14.1, torch.distributed.pipelining on gloo: after a first batch a schedule takes a shorter one without an
# error (the last batch of a test set; it splits evenly into the microbatches). The first stage sends what it has, the
# next receives into the buffers of the first batch, whose other rows stay: evaluation gives as many outputs as for a
# full batch, each microbatch's followed by rows of the batch before, and so the right ones lie in other places too. It
# comes from gloo: a `recv` takes a message that is shorter than its tensor and leaves the rest. (A batch that does not
# split evenly is known, pytorch issue 126600.) Until it is repaired: drop or fill up the last batch.
# Guess before running: an error about the shape, as stages infer and keep shapes, or the right rows; never old ones.
# Seen 2026-11-30, Python 3.11, two processes on a CPU: two stages that each add 1, two microbatches.
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
from torch import nn
from torch.distributed.pipelining import PipelineStage, Schedule1F1B, ScheduleGPipe


class Plus(nn.Module):
    def __init__(self, number: float) -> None:
        super().__init__()
        self.number = nn.Parameter(torch.tensor(number))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.number


def work(rank: int) -> None:
    dist.init_process_group("gloo", init_method=f"file://{__file__}.store", rank=rank, world_size=2)
    for kind in (ScheduleGPipe, Schedule1F1B):
        stage = PipelineStage(Plus(1.0), rank, 2, torch.device("cpu"))
        schedule = kind(stage, 2)
        for examples in ([10, 20, 30, 40, 50, 60, 70, 80], [110, 120, 130, 140]):
            batch = torch.tensor(examples, dtype=torch.float)[:, None]
            output = schedule.eval(batch) if rank == 0 else schedule.eval()
            if rank == 1:
                given = output.flatten().int().tolist()
                print(f"{kind.__name__}: a batch of {len(examples)} gives {given}", flush=True)
    numbers = torch.full((6,), -1.0)
    if rank == 0:
        dist.send(torch.arange(4.0), 1)
    else:
        dist.recv(numbers, 0)
        print(f"four numbers received into six places: {numbers.int().tolist()}", flush=True)
    dist.destroy_process_group()


if __name__ == "__main__":
    mp.spawn(work, nprocs=2)
PYTHON
seen=$("$folder/venv/bin/python" -W ignore "$folder/see.py" 2>"$folder/errors") || { cat "$folder/errors" >&2; exit 1; }
echo "$seen"
expected="ScheduleGPipe: a batch of 8 gives [12, 22, 32, 42, 52, 62, 72, 82]
ScheduleGPipe: a batch of 4 gives [112, 122, 32, 42, 132, 142, 72, 82]
Schedule1F1B: a batch of 8 gives [12, 22, 32, 42, 52, 62, 72, 82]
Schedule1F1B: a batch of 4 gives [112, 122, 32, 42, 132, 142, 72, 82]
four numbers received into six places: [0, 1, 2, 3, -1, -1]"
if [[ $seen != "$expected" ]]; then
    echo "the behaviour has changed; it was:" >&2
    echo "$expected" >&2
    exit 1
fi
