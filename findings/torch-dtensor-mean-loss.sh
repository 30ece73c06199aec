#!/usr/bin/env bash
# torch 2.14.1: DTensor, a batch in shards over two ranks, a weight on both. The losses that have a kernel of their own
# (mse_loss, smooth_l1_loss, huber_loss, soft_margin_loss) give a weight's gradient that is twice the right one (three
# times on three): the backward divides by a rank's own number of rows, and the sum over the ranks is taken. The value
# of the loss is right, so nothing is seen. With shards of different length the value is wrong too (a mean of the ranks'
# means), and the gradient weights a short shard's rows more. l1_loss, cross_entropy and a mean written out are right;
# binary_cross_entropy_with_logits has the wrong value only.
# Guess before running: DTensor gives what one tensor gives, for each loss; uneven shards are handled or refused.
# Seen 2026-11-29, Python 3.11, two processes on a CPU, gloo: loss and length of the gradient over those of plain
# tensors.
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
import torch.nn.functional as F
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import Replicate, Shard, distribute_tensor

LOSSES = {
    "mse_loss": F.mse_loss,
    "smooth_l1_loss": F.smooth_l1_loss,
    "huber_loss": F.huber_loss,
    "soft_margin_loss": F.soft_margin_loss,
    "bce_with_logits": lambda output, target: F.binary_cross_entropy_with_logits(output, target.sigmoid()),
    "l1_loss": F.l1_loss,
    "cross_entropy": lambda output, target: F.cross_entropy(output, target.argmax(1)),
    "mean of squares": lambda output, target: (output - target).pow(2).mean(),
}


def work(rank: int) -> None:
    dist.init_process_group("gloo", init_method=f"file://{__file__}.store", rank=rank, world_size=2)
    mesh = init_device_mesh("cpu", (2,))
    for rows in (4, 5):
        for name, loss in LOSSES.items():
            torch.manual_seed(0)
            x, target, start = torch.randn(rows, 3), torch.randn(rows, 2), torch.randn(2, 3)
            weight = start.clone().requires_grad_()
            value = loss(F.linear(x, weight), target)
            value.backward()
            spread = distribute_tensor(start, mesh, [Replicate()]).requires_grad_()
            x, target = (distribute_tensor(tensor, mesh, [Shard(0)]) for tensor in (x, target))
            other = loss(F.linear(x, spread), target)
            other.backward()
            ratio = spread.grad.full_tensor().norm() / weight.grad.norm()
            line = f"{rows} rows, {name}: loss {other.full_tensor() / value:.2f}, gradient {ratio:.2f}"
            if rank == 0:
                print(line, flush=True)
    dist.destroy_process_group()


if __name__ == "__main__":
    mp.spawn(work, nprocs=2)
PYTHON
seen=$("$folder/venv/bin/python" -W ignore "$folder/see.py" 2>"$folder/errors") || { cat "$folder/errors" >&2; exit 1; }
echo "$seen"
expected="4 rows, mse_loss: loss 1.00, gradient 2.00
4 rows, smooth_l1_loss: loss 1.00, gradient 2.00
4 rows, huber_loss: loss 1.00, gradient 2.00
4 rows, soft_margin_loss: loss 1.00, gradient 2.00
4 rows, bce_with_logits: loss 1.00, gradient 1.00
4 rows, l1_loss: loss 1.00, gradient 1.00
4 rows, cross_entropy: loss 1.00, gradient 1.00
4 rows, mean of squares: loss 1.00, gradient 1.00
5 rows, mse_loss: loss 0.94, gradient 1.74
5 rows, smooth_l1_loss: loss 0.97, gradient 1.84
5 rows, huber_loss: loss 0.97, gradient 1.84
5 rows, soft_margin_loss: loss 1.04, gradient 1.95
5 rows, bce_with_logits: loss 0.98, gradient 1.00
5 rows, l1_loss: loss 1.00, gradient 1.00
5 rows, cross_entropy: loss 1.00, gradient 1.00
5 rows, mean of squares: loss 1.00, gradient 1.00"
if [[ $seen != "$expected" ]]; then
    echo "the behaviour has changed; it was:" >&2
    echo "$expected" >&2
    exit 1
fi
