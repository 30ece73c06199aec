#!/usr/bin/env bash
# torch 2.14.1: `HuggingFaceStorageWriter` with `enable_consolidation`, which joins what the ranks wrote to the file
# that transformers reads, writes 0 for a tensor without dimensions (a temperature, CLIP's logit_scale, a learned gate):
# the name, type and shape are there, its bytes are never copied. Neither saving nor loading says a word, and the file
# of the rank has the right number. A tensor of one element with a dimension is right. Integers, as the count of a batch
# norm, end the saving with an error about torch.finfo.
# Guess before running: what is saved is read back, with and without consolidation.
# Seen 2026-11-30, Python 3.11, safetensors 0.8.0, a CPU, one process.
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install --quiet --disable-pip-version-check \
    torch==2.14.1 numpy==2.4.6 safetensors==0.8.0

cat >"$folder/see.py" <<'PYTHON'
from pathlib import Path

import torch
import torch.distributed.checkpoint as dcp
from safetensors.torch import load_file
from torch import nn


class Towers(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.image, self.text = nn.Linear(4, 4, bias=False), nn.Linear(4, 4, bias=False)
        self.logit_scale = nn.Parameter(torch.tensor(2.66))
        self.logit_bias = nn.Parameter(torch.tensor([-10.0]))


torch.manual_seed(0)
model = Towers()
for together in (False, True):
    folder = f"{__file__}.{together}"
    writer = dcp.HuggingFaceStorageWriter(folder, save_distributed=True, enable_consolidation=together)
    dcp.save(model.state_dict(), storage_writer=writer)
    loaded = {name: torch.full_like(tensor, -1) for name, tensor in model.state_dict().items()}
    dcp.load(loaded, storage_reader=dcp.HuggingFaceStorageReader(folder))
    for name, tensor in model.state_dict().items():
        print(f"consolidated {together}: {name} is read back: {torch.equal(loaded[name], tensor)}")
for place in ("sharded", "."):
    (file,) = (Path(f"{__file__}.True") / place).glob("*.safetensors")
    print(f"safetensors reads logit_scale in {place}: {load_file(file)['logit_scale'].item():.2f}")
model = nn.BatchNorm1d(4)
try:
    writer = dcp.HuggingFaceStorageWriter(f"{__file__}.integers", save_distributed=True, enable_consolidation=True)
    dcp.save(model.state_dict(), storage_writer=writer)
    print("integers are written")
except (TypeError, dcp.api.CheckpointException) as error:
    about = "torch.finfo() requires a floating point" in str(error)
    print(f"with a batch norm: {type(error).__name__}, about torch.finfo {about}")
PYTHON
seen=$("$folder/venv/bin/python" -W ignore "$folder/see.py" 2>"$folder/errors") || { cat "$folder/errors" >&2; exit 1; }
echo "$seen"
expected="consolidated False: logit_scale is read back: True
consolidated False: logit_bias is read back: True
consolidated False: image.weight is read back: True
consolidated False: text.weight is read back: True
consolidated True: logit_scale is read back: False
consolidated True: logit_bias is read back: True
consolidated True: image.weight is read back: True
consolidated True: text.weight is read back: True
safetensors reads logit_scale in sharded: 2.66
safetensors reads logit_scale in .: 0.00
with a batch norm: CheckpointException, about torch.finfo True"
if [[ $seen != "$expected" ]]; then
    echo "the behaviour has changed; it was:" >&2
    echo "$expected" >&2
    exit 1
fi
