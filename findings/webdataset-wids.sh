#!/usr/bin/env bash
# webdataset 1.0.2 has no indexed access any more: the module `wids` (ShardListDataset, random access to
# samples of tar shards, DistributedChunkedSampler) came with every 0.2 release up to 0.2.111 at least.
# Guess before running: a 1.0 release keeps it, or says in an error where it went.
# Seen 2026-11-28, Python 3.11: `import wids` works with 0.2.111, and raises ModuleNotFoundError with 1.0.2.
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"

has_wids() { # version
    "$folder/venv/bin/python" -m pip install --quiet --disable-pip-version-check "webdataset==$1" 2>/dev/null
    (cd "$folder" && "$folder/venv/bin/python" -c \
        'import importlib.util, webdataset; print(importlib.util.find_spec("wids") is not None)')
}

old=$(has_wids 0.2.111)
new=$(has_wids 1.0.2)
echo "wids is installed: with webdataset 0.2.111 $old, with 1.0.2 $new"
[[ $old == True && $new == False ]]
