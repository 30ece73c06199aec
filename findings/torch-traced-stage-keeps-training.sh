#!/usr/bin/env bash
# torch 2.14.1, torch.distributed.pipelining: the stages of `pipeline(model, ...)` stay in the mode in which they were
# traced, and `eval()` and `train()` of a stage do nothing, silently: a module exported by torch.export, which they come
# from, refuses both calls for just that reason. So a traced pipeline evaluates with dropout on, normalises the test
# batches by their own statistics and moves the running ones by them; a model traced in evaluation trains without
# dropout and with a frozen batch norm. Nor can a second pipeline be traced for evaluation: `pipeline` wraps the layer
# at a cut in place, and the same model then fails with a RecursionError. Until it is repaired: trace two deep copies
# and copy the weights over.
# Guess before running: stages are modules whose eval() works (`training` changes), or it is refused as in torch.export.
# Seen 2026-11-30, Python 3.11, a CPU: what acts in the two stages of a model with dropout and a batch norm.
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install --quiet --disable-pip-version-check \
    torch==2.14.1 numpy==2.4.6

cat >"$folder/see.py" <<'PYTHON'
import torch
from torch import nn
from torch.distributed.pipelining import SplitPoint, pipeline

torch.manual_seed(0)
x = torch.randn(8, 4)


class Model(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.dropout = nn.Linear(4, 4), nn.Dropout(0.5)
        self.second, self.norm = nn.Linear(4, 4), nn.BatchNorm1d(4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.norm(self.second(self.dropout(self.first(x))))


def acts(first: nn.Module, second: nn.Module) -> str:
    before = second.get_buffer("norm.running_mean").clone()
    one, two = first(x), first(x)
    second(one)
    moved = not torch.equal(before, second.get_buffer("norm.running_mean"))
    return f"dropout {not torch.equal(one, two)}, running mean moves {moved}"


for traced in (True, False):
    model = Model().train(traced)
    pipe = pipeline(model, (x,), split_spec={"second": SplitPoint.BEGINNING})
    for now in (True, False):
        stages = [pipe.get_stage_module(index).train(now) for index in range(2)]
        assert all(module.training == now for stage in stages for module in stage.modules())
        print(f"traced in {'train' if traced else 'eval'}, now {'train' if now else 'eval'}:", acts(*stages))
refused = False
try:
    torch.export.export(Model(), (x,)).module().eval()
except NotImplementedError:
    refused = True
print("torch.export alone refuses eval():", refused)
model, second = Model(), "works"
pipeline(model, (x,), split_spec={"second": SplitPoint.BEGINNING})
try:
    pipeline(model.eval(), (x,), split_spec={"second": SplitPoint.BEGINNING})
except RuntimeError as error:
    second = f"fails: {type(error.__cause__).__name__}"
print("a second pipeline of one model, for evaluation,", second)
PYTHON
seen=$("$folder/venv/bin/python" -W ignore "$folder/see.py" 2>"$folder/errors") || { cat "$folder/errors" >&2; exit 1; }
echo "$seen"
expected="traced in train, now train: dropout True, running mean moves True
traced in train, now eval: dropout True, running mean moves True
traced in eval, now train: dropout False, running mean moves False
traced in eval, now eval: dropout False, running mean moves False
torch.export alone refuses eval(): True
a second pipeline of one model, for evaluation, fails: RecursionError"
if [[ $seen != "$expected" ]]; then
    echo "the behaviour has changed; it was:" >&2
    echo "$expected" >&2
    exit 1
fi
