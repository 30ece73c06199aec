#!/usr/bin/env bash
# safetensors 0.8.0, NumPy side: `save_file` writes a transposed array (or any in Fortran order) with the shape of the
# transpose and the bytes in the order of memory. `load_file` then gives other values, without an error.
# 0.7.0 wrote them in the right order. Converters of checkpoints transpose matrices; scikit-learn's PCA gives such ones.
# Until it is repaired: `numpy.ascontiguousarray` before saving.
# Guess before running: the array is copied in the right order, or refused as torch's `save_file` refuses it.
# Seen 2026-11-28, Python 3.11: [[0, 3], [1, 4], [2, 5]] comes back from 0.8.0 as [[0, 1], [2, 3], [4, 5]].
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"

back() { # version
    "$folder/venv/bin/python" -m pip install --quiet --disable-pip-version-check "safetensors==$1" numpy==2.4.6
    (cd "$folder" && "$folder/venv/bin/python" - <<'PYTHON'
import numpy as np
from safetensors.numpy import load_file, save_file

weight = np.arange(6).reshape(2, 3).T
save_file({"weight": weight, "copy": np.ascontiguousarray(weight)}, "model.safetensors")
read = load_file("model.safetensors")
assert read["copy"].tolist() == weight.tolist() == [[0, 3], [1, 4], [2, 5]]
print(read["weight"].tolist())
PYTHON
    )
}

old=$(back 0.7.0)
new=$(back 0.8.0)
echo "a transposed array [[0, 3], [1, 4], [2, 5]] comes back: from safetensors 0.7.0 as $old, from 0.8.0 as $new"
[[ $old == "[[0, 3], [1, 4], [2, 5]]" && $new == "[[0, 1], [2, 3], [4, 5]]" ]]
