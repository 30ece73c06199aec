#!/usr/bin/env bash
# torch 2.14.1, torch.distributed.pipelining: with `scale_grads` (the default) a schedule divides by the number of
# microbatches whatever lies in `grad` when a stage is done, not what this step has added. So steps without zero_grad
# between them do not add up: with 4 microbatches the second of two equal steps gives 1 + 1/4 gradients (torchtitan met
# this, issue 1733). The same for a weight that two stages of one rank share, as tied embeddings in a V-shaped schedule:
# the stage that ends first divides, the other divides again what is there, and the gradient is no multiple of the right
# one. Until it is repaired: `scale_grads=False`, and divide the loss.
# Guess before running: gradients add up over steps and over a weight's uses, each divided by 4 once.
# Seen 2026-11-29, Python 3.11, a CPU, one process: gradients over the plain ones (length, cosine).
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install --quiet --disable-pip-version-check \
    torch==2.14.1 numpy==2.4.6

cat >"$folder/see.py" <<'PYTHON'
import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.pipelining import PipelineStage, Schedule1F1B, ScheduleGPipe, ScheduleInterleaved1F1B


class Product(nn.Module):
    def __init__(self, weight: nn.Parameter) -> None:
        super().__init__()
        self.weight = weight

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x @ self.weight


def compared(weight: nn.Parameter, plain: torch.Tensor) -> str:
    grad = weight.grad.flatten()
    return f"{grad.norm() / plain.norm():.3f} {nn.functional.cosine_similarity(grad, plain, dim=0):.3f}"


dist.init_process_group("gloo", init_method=f"file://{__file__}.store", rank=0, world_size=1)
torch.manual_seed(0)
x, target, start = torch.randn(8, 4), torch.randn(8, 4), torch.randn(4, 4)
for layers in (1, 2):
    weight = nn.Parameter(start.clone())
    output = x
    for _ in range(layers):
        output = output @ weight
    nn.functional.mse_loss(output, target).backward()
    plain = weight.grad.flatten()
    for kind in (ScheduleGPipe, Schedule1F1B) if layers == 1 else (ScheduleInterleaved1F1B,):
        weight = nn.Parameter(start.clone())
        stages = [PipelineStage(Product(weight), index, layers, torch.device("cpu")) for index in range(layers)]
        schedule = kind(stages[0] if layers == 1 else stages, 4, loss_fn=nn.MSELoss())
        for steps in (1, 2, 3) if layers == 1 else (1,):
            schedule.step(x, target=target)
            print(f"{kind.__name__}, {layers} uses, {steps} steps:", compared(weight, plain))
dist.destroy_process_group()
PYTHON
seen=$("$folder/venv/bin/python" -W ignore "$folder/see.py" 2>"$folder/errors") || { cat "$folder/errors" >&2; exit 1; }
echo "$seen"
expected="ScheduleGPipe, 1 uses, 1 steps: 1.000 1.000
ScheduleGPipe, 1 uses, 2 steps: 1.250 1.000
ScheduleGPipe, 1 uses, 3 steps: 1.312 1.000
Schedule1F1B, 1 uses, 1 steps: 1.000 1.000
Schedule1F1B, 1 uses, 2 steps: 1.250 1.000
Schedule1F1B, 1 uses, 3 steps: 1.312 1.000
ScheduleInterleaved1F1B, 2 uses, 1 steps: 0.362 0.964"
if [[ $seen != "$expected" ]]; then
    echo "the behaviour has changed; it was:" >&2
    echo "$expected" >&2
    exit 1
fi
