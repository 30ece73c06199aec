#!/usr/bin/env bash
# Two ranks on a core each, one of which does something else half of the time:
#
#   bash experiments/unequal.sh OUTPUT CONFIG [key=value ...]
#
# A profile by both, then runs whose stages have equal numbers of modules and runs whose stages the
# profile cuts, in turns. Run it on a machine that does nothing else.
set -euo pipefail

output=$1 config=$2
shift 2
mkdir -p "$output"
taskset -c 1 sh -c 'while :; do :; done' &
busy=$!
trap 'kill $busy' EXIT

ranks() {
    port=$((29000 + RANDOM % 2000))
    for rank in 1 0; do
        taskset -c $rank env RANK=$rank WORLD_SIZE=2 LOCAL_RANK=$rank LOCAL_WORLD_SIZE=2 \
            MASTER_ADDR=127.0.0.1 MASTER_PORT=$port python -m pipeline_local "$@" &
        last=$!
    done
    wait $last
    wait -n || true
}

ranks profile "$config" parallel.stages=2 parallel.threads=1 "$@" --output "$output/profile.json"
for turn in 1 2 3; do
    for cuts in uniform auto; do
        ranks train "$config" parallel.stages=2 parallel.threads=1 parallel.cuts=$cuts "$@" \
            "modules.profile=[$output/profile-0.json,$output/profile-1.json]" run.dir="$output/$cuts-$turn"
    done
done
python - "$output" <<'PYTHON'
import json, statistics, sys
from pathlib import Path

for cuts in ("uniform", "auto"):
    runs = [json.loads(p.read_text()) for p in Path(sys.argv[1]).glob(f"{cuts}-*/summary.json")]
    rates = [run["samples_per_second"] for run in runs]
    print(f"{cuts}: {statistics.median(rates):.1f} samples/s of {rates};",
          f"stages predicted {runs[0]['predicted_stage_seconds']}, measured {runs[0]['stage_seconds']}")
PYTHON
