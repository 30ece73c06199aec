#!/usr/bin/env bash
# torch 2.14.1, gloo: `all_reduce` with MAX and MIN keeps a NaN or loses it by who has it: of two ranks and one element,
# rank 0's NaN reaches both, rank 1's reaches none, not even itself; of a longer tensor each rank's half of the NaNs
# stays (a sum keeps all, as torch.maximum does). DTensor's max and min take it over, and `clip_grad_norm_` of sharded
# gradients with the norm inf: `error_if_nonfinite=True` raises for one shard's NaN and lets the other's pass. A vote on
# "is any loss NaN" by the maximum of the losses misses ranks; vote by a sum, or by the maximum of isnan.
# Guess before running: NaN on all ranks, whoever has it.
# Seen 2026-11-30, Python 3.11, two processes on a CPU: what comes of a NaN on one of them.
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
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import Shard, distribute_tensor

NAN = float("nan")


def work(rank: int) -> None:
    dist.init_process_group("gloo", init_method=f"file://{__file__}.store", rank=rank, world_size=2)
    mesh = init_device_mesh("cpu", (2,))
    for holder in (0, 1):
        lines = []
        for name in ("MAX", "MIN", "SUM"):
            vote = torch.tensor([NAN if rank == holder else 1.0])
            dist.all_reduce(vote, getattr(dist.ReduceOp, name))
            lines.append(f"{name} {vote.item()}")
        many = torch.full((1000,), NAN if rank == holder else 1.0)
        dist.all_reduce(many, dist.ReduceOp.MAX)
        lines.append(f"of 1000 {int(many.isnan().sum())} stay")
        gradient = torch.tensor([1.0, 2.0, 3.0, 4.0])
        gradient[3 * holder] = NAN
        gradient = distribute_tensor(gradient, mesh, [Shard(0)])
        lines.append(f"DTensor max {gradient.max().full_tensor().item()}")
        for norm in (float("inf"), 2.0):
            parameter = torch.nn.Parameter(distribute_tensor(torch.zeros(4), mesh, [Shard(0)]))
            parameter.grad = gradient.clone()
            try:
                torch.nn.utils.clip_grad_norm_([parameter], 1.0, norm_type=norm, error_if_nonfinite=True)
                lines.append(f"norm {norm} passes")
            except RuntimeError:
                lines.append(f"norm {norm} raises")
        everyone = [None, None]
        dist.all_gather_object(everyone, lines)
        if rank == 0:
            lines.append("ranks agree" if everyone[0] == everyone[1] else "ranks differ")
            print(f"NaN on rank {holder}:", ", ".join(lines), flush=True)
    dist.destroy_process_group()


if __name__ == "__main__":
    mp.spawn(work, nprocs=2)
PYTHON
seen=$("$folder/venv/bin/python" -W ignore "$folder/see.py" 2>"$folder/errors") || { cat "$folder/errors" >&2; exit 1; }
echo "$seen"
expected="NaN on rank 0: MAX nan, MIN nan, SUM nan, of 1000 500 stay, DTensor max nan, norm inf raises, norm 2.0 raises, ranks agree
NaN on rank 1: MAX 1.0, MIN 1.0, SUM nan, of 1000 500 stay, DTensor max 2.0, norm inf passes, norm 2.0 raises, ranks agree"
if [[ $seen != "$expected" ]]; then
    echo "the behaviour has changed; it was:" >&2
    echo "$expected" >&2
    exit 1
fi
