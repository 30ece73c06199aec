#!/usr/bin/env bash
# Tries an image: healthcheck, unknown user, compiler, too little shared memory, stop in mid-run.
#
#   bash docker/try.sh pipeline-local:cpu
#
# ENGINE="podman --runtime runc" names the program, OPTIONS="--network host" its options.
set -euo pipefail

if (($# != 1)); then
    echo "usage: bash docker/try.sh IMAGE" >&2
    exit 2
fi
image=$1
read -ra engine <<<"${ENGINE:-docker}"
read -ra options <<<"${OPTIONS:-}"
runs=$(mktemp -d)
chmod 777 "$runs"
container=pipeline-local-try-$$
trap '"${engine[@]}" rm -f "$container" >/dev/null 2>&1 || true; rm -rf "$runs"' EXIT
small=(configs/digits.yaml model.name=mlp head.name=linear modules.count=2 parallel.threads=1)
small+=(train.epochs=null)

inside() { # code, options of the engine ... -- arguments ...
    local code=$1 given=() status=0
    shift
    while [[ $1 != -- ]]; do
        given+=("$1")
        shift
    done
    shift
    "${engine[@]}" run "${options[@]}" --name "$container" --user 12345:12345 \
        -v "$runs:/app/runs" "${given[@]}" "$image" "$@" >"$runs/log" 2>&1 || status=$?
    "${engine[@]}" rm -f "$container" >/dev/null
    if ((status != code)); then
        cat "$runs/log" >&2
        echo "try: ended with $status, not $code: $*" >&2
        exit 1
    fi
}

say() { echo "try: $*"; }

inside 0 -- doctor --quick
say "the healthcheck passes"

inside 0 -- train "${small[@]}" train.steps=10 parallel.stages=2 run.dir=runs/user
[[ $(stat -c %u "$runs/user/summary.json") == 12345 ]]
say "an unknown user trains, and owns the run folder"

inside 0 -- train "${small[@]}" train.steps=2 parallel.stages=1 run.dir=runs/compiled compile=true
say "compile=true works"

inside 2 --shm-size 128k -- train "${small[@]}" train.steps=2 parallel.stages=1 run.dir=runs/shm \
    data.workers=2 data.batch_size=1024 data.image_size=32
(($(grep -vc '^train: ' "$runs/log") < 10)) # those say what is being loaded, on a slow machine
say "$(grep '^error:' "$runs/log")"

"${engine[@]}" run -d "${options[@]}" --name "$container" --user 12345:12345 -v "$runs:/app/runs" \
    "$image" train "${small[@]}" train.steps=1000000 checkpoint.every_steps=20 \
    parallel.stages=2 run.dir=runs/stop >/dev/null
until compgen -G "$runs/stop/checkpoints/step-*" >/dev/null; do sleep 1; done
begin=$SECONDS
"${engine[@]}" stop "$container" >/dev/null
code=$("${engine[@]}" inspect "$container" --format '{{.State.ExitCode}}')
"${engine[@]}" logs "$container" 2>&1 | grep '^stopped by a signal'
say "stopped within $((SECONDS - begin)) s, exit code $code"
((code == 75))
