#!/usr/bin/env bash
# Measure all that a GPU can show, and print one table, in Markdown.
#
#     bash bench/gpu.sh                               # config/gpt2.toml; logs in out/gpu
#     bash bench/gpu.sh config/toy.toml out/gpu-toy   # the same on a CPU
#     LIMIT=540 bash bench/gpu.sh                     # 540 seconds; repeat until done
#
# Each stage is a command with a time limit and a log. A stage that has succeeded is not
# run again, and training goes on where it was cut off. The first time, a model in the
# preset's folders is overwritten.
set -uo pipefail
cd "$(dirname "$0")/.."
preset=${1:-config/gpt2.toml} out=${2:-out/gpu} end=$((SECONDS + ${LIMIT:-1000000}))
python=${PYTHON:-$([ -x .venv/bin/python ] && echo .venv/bin/python || echo python3)}
stages=() failed=0
mkdir -p "$out"

# stage NAME SECONDS COMMAND...
stage() {
    local name=$1 limit=$2 left=$((end - SECONDS)) start=$SECONDS status
    shift 2
    stages+=("$name")
    [ -e "$out/$name.done" ] && return 0
    [ "$left" -gt 0 ] || pause
    echo "$name: $*"
    timeout -k 60 $((limit < left ? limit : left)) "$@" >>"$out/$name.log" 2>&1
    status=$?
    echo $((SECONDS - start)) >>"$out/$name.seconds"
    if [ $status = 0 ]; then
        touch "$out/$name.done"
    elif [ "$SECONDS" -ge "$end" ]; then
        pause
    else
        echo "    failed ($status): $(tail -n 1 "$out/$name.log")"
        failed=1
    fi
    return $status
}

# training NAME SECONDS FOLDER COMMAND...: a stage that resumes what was cut off
training() {
    local name=$1 limit=$2 folder=$3 start=--overwrite
    shift 3
    [ -e "$out/$name.seconds" ] && [ -e "$folder/last.pt" ] && start=--resume
    stage "$name" "$limit" "$@" "$start"
}

pause() {
    table
    echo "The time is up: the same command goes on."
    exit 1
}

give_up() {
    table
    echo "Nothing can follow without it: see its log in $out."
    exit 1
}

# What each stage took, and the figures that it printed last
table() {
    local name state figures seconds
    local figure='tokens/s|rows/s|^MFU|peak memory|stalled|^mean|^on |^error'
    printf '\n| %-16s | %-6s | %7s | figures |\n' stage state seconds
    printf '| --- | --- | ---: | --- |\n'
    for name in "${stages[@]}"; do
        state=failed
        [ -e "$out/$name.done" ] && state=done
        figures=$({ grep -hE "$figure" "$out/$name.log" | tail -n 4
            grep -h '^step' "$out/$name.log" | tail -n 1; } 2>/dev/null \
            | tr -s ' ' | paste -sd ';')
        seconds=$(($(paste -sd + "$out/$name.seconds" 2>/dev/null || echo 0)))
        printf '| %-16s | %-6s | %7s | %s |\n' "$name" "$state" $seconds "${figures//;/; }"
    done | tee "$out/table.txt"
}

# of KEY in a section of the preset: its value
of() {
    "$python" -c 'import sys, tomllib
print(tomllib.load(open(sys.argv[1], "rb"))[sys.argv[2]][sys.argv[3]])' "$preset" "$@"
}

base=$(of train out_dir) tuned=$(of instruct out_dir) rows=$(of train batch_size)
step=("$python" -m bench.step "$preset")

stage environment 300 "$python" -c 'import platform, subprocess, sys, torch
from config.machine import find_machine, should_compile
from train import TrainConfig
cfg = TrainConfig()
machine = find_machine(cfg)
gpu = machine.device.type == "cuda"
name = torch.cuda.get_device_name() if gpu else platform.machine()
print(f"on {name}, torch {torch.__version__}, CUDA {torch.version.cuda}, "
      f"{machine.dtype}, peak {machine.peak}, "
      f"compiled: {should_compile(cfg, machine, 1e15)}")
if gpu:
    subprocess.run(["nvidia-smi"])'
stage prepare 580 "$python" prepare.py "$preset" || give_up

# a step, and with one thing changed
stage step 300 "${step[@]}"
stage step-dropout 300 "${step[@]}" --dropout=0.1
stage step-vocabulary 300 "${step[@]}" --vocab_size=50257
stage step-adamw 300 "${step[@]}" --optimizer=adamw
stage step-float16 300 "${step[@]}" --dtype=float16
stage step-eager 300 "${step[@]}" --compile=no --gradient_accumulation_steps=1
stage step-torchrun 300 "$python" -m torch.distributed.run --standalone \
    --nproc_per_node=1 -m bench.step "$preset"

# memory
for B in $((rows / 2)) "$rows" $((rows * 2)); do
    stage "rows-$B" 300 "${step[@]}" --batch_size="$B" --gradient_accumulation_steps=1
done

# 100 steps of a run: the same loss in float16 as in the dtype that auto takes
for dtype in auto float16; do
    stage "100-$dtype" 580 "$python" train.py "$preset" --dtype="$dtype" --max_steps=100 \
        --out_dir="$out/100-$dtype" --overwrite
done

# the preset
training pretraining 3600 "$base" "$python" train.py "$preset" || give_up
stage tuning-step 300 "$python" -m bench.tuning "$preset"
stage tuning-float16 300 "$python" -m bench.tuning "$preset" --dtype=float16
stage tuning-prefix 300 "$python" -m bench.tuning "$preset" --mix_instructions=false \
    --compile=no --batch_size=64 --gradient_accumulation_steps=4
stage 6-mers 580 "$python" -m tools.kmers "$(of prepare data_dir)/tasks"
training tuning 3600 "$tuned" "$python" instruct.py "$preset" || give_up
stage scoring 580 "$python" instruct.py "$preset" --epochs=0 --init_from="$tuned" \
    --out_dir="$out"
table
exit $failed
