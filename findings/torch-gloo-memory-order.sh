#!/usr/bin/env bash
# torch 2.14.1, gloo: all_reduce, broadcast and reduce take the bytes of a tensor in the order of memory and look at no
# strides. If ranks hold the same shape in different order (a transposed weight, channels_last, on one of them),
# elements of different places are added or written, without an error; `send` refuses such a tensor, all_gather copies
# it.
# Guess before running: as elsewhere in torch the elements go by their indices, or it is refused.
# Seen 2026-11-29, Python 3.11, two processes on a CPU: [[0, 3], [1, 4], [2, 5]], on rank 0 a transposed view; what rank
# 1 has after it.
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


def work(rank: int) -> None:
    dist.init_process_group("gloo", init_method=f"file://{__file__}.store", rank=rank, world_size=2)

    def tensor() -> torch.Tensor:
        view = torch.arange(6).reshape(2, 3).T
        return view if rank == 0 else view.contiguous()

    def say(name: str, value: object) -> None:
        if rank == 1:
            print(name, value, flush=True)

    x = tensor()
    dist.all_reduce(x)
    say("all_reduce", x.tolist())
    x = tensor()
    dist.reduce(x, 1)
    say("reduce", x.tolist())
    x = tensor()
    dist.broadcast(x, 0)
    say("broadcast", x.tolist())
    parts = [torch.zeros(3, 2, dtype=torch.long) for _ in range(2)]
    dist.all_gather(parts, tensor())
    say("all_gather", parts[0].tolist())
    refused = False
    try:
        if rank == 0:
            dist.send(tensor(), 1)
    except RuntimeError:
        refused = True
    flags = [None, None]
    dist.all_gather_object(flags, refused)
    say("send refused", flags[0])
    dist.destroy_process_group()


if __name__ == "__main__":
    mp.spawn(work, nprocs=2)
PYTHON
seen=$("$folder/venv/bin/python" -W ignore "$folder/see.py" 2>"$folder/errors") || { cat "$folder/errors" >&2; exit 1; }
echo "$seen"
expected="all_reduce [[0, 4], [3, 7], [6, 10]]
reduce [[0, 4], [3, 7], [6, 10]]
broadcast [[0, 1], [2, 3], [4, 5]]
all_gather [[0, 3], [1, 4], [2, 5]]
send refused True"
if [[ $seen != "$expected" ]]; then
    echo "the behaviour has changed; it was:" >&2
    echo "$expected" >&2
    exit 1
fi
