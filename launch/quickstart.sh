#!/usr/bin/env bash
# From a fresh clone to a trained model: sets up .venv, then trains on the handwritten digits.
#
#   bash launch/quickstart.sh [key=value ...]        such as train.epochs=3 parallel.stages=1
#
# Needs Python 3.10 or newer (PYTHON= names one). Run folders are made below the repository root.
set -euo pipefail

cd "$(dirname "${BASH_SOURCE[0]}")/.."

# A run folder is never overwritten, so a repeated quickstart takes the next free name, unless the
# user names one or resumes.
free_run() {
    local folder=runs/digits count=1
    while [[ -e $folder ]]; do
        count=$((count + 1))
        folder=runs/digits-$count
    done
    echo "$folder"
}

names_run() {
    local argument
    for argument; do
        [[ $argument != run.dir=* && $argument != run.resume=* ]] || return 0
    done
    return 1
}

bash launch/setup.sh
if ! names_run "$@"; then
    set -- "run.dir=$(free_run)" "$@"
fi
echo "quickstart: pipeline-local train configs/digits.yaml $*" >&2
exec .venv/bin/pipeline-local train configs/digits.yaml "$@"
