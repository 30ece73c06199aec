#!/usr/bin/env bash
# datasets 5.2.0: `skip(n)` and `take(n)` of an IterableDataset choose other examples for another number of DataLoader
# workers (or of nodes, with split_dataset_by_node): each worker skips its part of n in its own shards. A stream that is
# split by `take(n)` for validation and `skip(n)` for training, the validation loader with fewer workers than the
# training's, trains on validation examples, and neither loader sees some others. With equal numbers, or one shard, the
# halves fit.
# Guess before running: skip and take are by the order of the dataset, however many workers read it.
# Seen 2026-11-29, Python 3.11, torch 2.14.1: 24 examples in 4 shards, n = 8; w and v workers train and validate.
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install --quiet --disable-pip-version-check \
    torch==2.14.1 numpy==2.4.6 datasets==5.2.0

cat >"$folder/see.py" <<'PYTHON'
from datasets import Dataset
from torch.utils.data import DataLoader


def read(dataset, workers: int) -> set[int]:
    loader = DataLoader(dataset, batch_size=None, num_workers=workers)
    return {int(example["x"]) for example in loader}


if __name__ == "__main__":
    stream = Dataset.from_dict({"x": list(range(24))}).to_iterable_dataset(num_shards=4)
    for v, w in ((0, 0), (0, 2), (0, 4), (2, 4), (2, 2)):
        validation, training = read(stream.take(8), v), read(stream.skip(8), w)
        print(
            f"v={v} w={w}: validates on {sorted(validation)}, in both {sorted(validation & training)},",
            f"in none {sorted(set(range(24)) - validation - training)}",
        )
PYTHON
seen=$("$folder/venv/bin/python" -W ignore "$folder/see.py" 2>"$folder/errors") || { cat "$folder/errors" >&2; exit 1; }
echo "$seen"
expected="v=0 w=0: validates on [0, 1, 2, 3, 4, 5, 6, 7], in both [], in none []
v=0 w=2: validates on [0, 1, 2, 3, 4, 5, 6, 7], in both [4, 5], in none [8, 9]
v=0 w=4: validates on [0, 1, 2, 3, 4, 5, 6, 7], in both [2, 3, 4, 5], in none [12, 13, 18, 19]
v=2 w=4: validates on [0, 1, 2, 3, 6, 7, 8, 9], in both [2, 3, 8, 9], in none [12, 13, 18, 19]
v=2 w=2: validates on [0, 1, 2, 3, 6, 7, 8, 9], in both [], in none []"
if [[ $seen != "$expected" ]]; then
    echo "the behaviour has changed; it was:" >&2
    echo "$expected" >&2
    exit 1
fi
