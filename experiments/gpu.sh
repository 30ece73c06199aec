#!/usr/bin/env bash
# Everything that waits for a GPU, in the order of its worth: bash experiments/gpu.sh OUT
#
# Each piece leaves OUT/NAME.txt (and NAME.json) when it went well, and is not run again then, so the
# same command goes on after any interruption. BATCHES, RUNS, STEPS (a multiple of 8) and MORE settings
# make it smaller, such as on a CPU: BATCHES=8 RUNS=1 STEPS=8 MORE=data.image_size=64 bash ...
# SEQUENCES and MORE_TEXT do so for the language model: SEQUENCES=4 MORE_TEXT=model.n_layer=8
# DATA=PATH (CIFAR-10 as an image folder) adds accuracy.
set -uo pipefail

out=$1
mkdir -p "$out"
read -ra more <<<"${MORE:-}"
read -ra more_text <<<"${MORE_TEXT:-}"
resnet=configs/bench-resnet50.yaml vit=configs/bench-vit-s.yaml gpt2=configs/bench-gpt2.yaml

once() { # name, command...
    local name=$1
    shift
    [[ -e $out/$name.txt ]] && return
    echo "== $name: $*"
    if "$@" >"$out/$name.part" 2>&1; then
        mv "$out/$name.part" "$out/$name.txt"
        cat "$out/$name.txt"
    else
        echo "exit code $?"
        tail -n 5 "$out/$name.part"
    fi
}

baselines() { # name, configuration, settings: one device, interleaved
    once "$1" python -m pipeline_local bench baselines "$2" --baselines bp,checkpoint,local --runs "${RUNS:-3}" \
        --steps "${STEPS:-24}" --json "$out/$1.json" "${@:3}" "${more[@]}"
}

once versions python -c "import platform, torch, torchvision as v
gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else 'none'
print(platform.python_version(), torch.__version__, v.__version__, torch.version.cuda, gpu)"
once p2p env PIPELINE_LOCAL_TEST_GPU=1 python -m pytest -q tests/ranks/test_p2p.py \
    tests/pipeline/test_transport.py tests/record tests/learning tests/bench/test_memory.py

for batch in ${SEQUENCES:-8 32}; do
    for k in 4 2 8; do
        once "gpt2-k$k-b$batch" python -m pipeline_local bench baselines $gpt2 \
            --baselines bp,checkpoint,accumulate,local --microbatches 4 --runs "${RUNS:-3}" --steps "${STEPS:-24}" \
            --json "$out/gpt2-k$k-b$batch.json" "data.batch_size=$batch" "modules.count=$k" "${more_text[@]}"
    done
done
for batch in ${BATCHES:-128 256}; do
    for k in 4 2 8; do
        for precision in float32 bfloat16; do
            suffix=k$k-b$batch-$precision
            baselines "resnet50-$suffix" $resnet "data.batch_size=$batch" "precision=$precision" "modules.count=$k"
            baselines "vit-s-$suffix" $vit "data.batch_size=$batch" "precision=$precision" "modules.count=$k"
        done
    done
    baselines "resnet50-auglocal-b$batch" $resnet "data.batch_size=$batch" head.name=auglocal precision=bfloat16
    baselines "vit-s-auglocal-b$batch" $vit "data.batch_size=$batch" head.name=auglocal precision=bfloat16
    baselines "resnet50-channels-last-b$batch" $resnet "data.batch_size=$batch" channels_last=true \
        precision=bfloat16
    baselines "resnet50-compile-b$batch" $resnet "data.batch_size=$batch" compile=true channels_last=true \
        precision=bfloat16
    baselines "vit-s-compile-b$batch" $vit "data.batch_size=$batch" compile=true precision=bfloat16
    baselines "resnet101-b$batch" $resnet model.name=resnet101 "data.batch_size=$batch" precision=bfloat16
    baselines "vit-b-b$batch" $vit model.hidden_dim=768 model.mlp_dim=3072 model.num_heads=12 \
        "data.batch_size=$batch" precision=bfloat16
done
for config in $resnet $vit; do
    net=$(basename "$config" .yaml)
    for precision in float32 bfloat16; do # how far what is planned is from what the allocator sees
        name=$net-$precision settings=(data.batch_size=64 "precision=$precision" "${more[@]}")
        once "profile-$name" python -m pipeline_local profile "$config" "${settings[@]}" \
            --output "$out/profile-$name.json"
        settings+=("modules.profile=$out/profile-$name.json")
        once "plan-$name" python -m pipeline_local plan "$config" "${settings[@]}"
        once "train-$name" python -m pipeline_local train "$config" "${settings[@]}" train.steps=9 \
            "run.dir=$out/run-$name"
        once "held-$name" grep peak_memory_bytes -A 1 "$out/run-$name/summary.json"
    done
    once "reconcile-$net" python -m pipeline_local bench reconcile "$config" --module 3 --runs 3 \
        "${more[@]}"
done
if [[ -n ${DATA:-} ]]; then # goes on where it was cut off, run by run
    python experiments/sweep.py experiments/full.yaml "$out/full" "data.root=$DATA" "${more[@]}" --jobs 2
    python experiments/table.py "$out/full" --baseline bp
fi
