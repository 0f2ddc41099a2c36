#!/usr/bin/env bash
# A tuned model under other prompts: an unseen wording, one strand, few-shot examples. Nothing is
# tuned here. Run this first: PRESET=results/laptop-14m.toml bash results/laptop.sh 2
set -euo pipefail
cd "$(dirname "$0")/.."

tasks=data/laptop-14m/tasks
mkdir -p out/prompt-variants

score() {       # score NAME FILES [--key=value ...]: write out/prompt-variants/NAME.json
    name=$1
    files=$2
    shift 2
    python instruct.py --epochs=0 --init_from=out/laptop-14m-seed2-instruct --eval_tasks="$files" \
        --scores="out/prompt-variants/$name.json" "$@"
}

python -m bench.few_shot "$tasks" data/laptop-14m/reworded --reworded
score reworded 'data/laptop-14m/reworded/*.dev.json' --both_strands

score one-strand "$tasks/tf_*.dev.json,$tasks/mouse_*.dev.json,$tasks/EMP_*.dev.json"

# Few-shot examples, for seven tasks with short sequences.
python -m bench.few_shot "$tasks" data/laptop-14m/shots --shots=3 --init_from=out/laptop-14m
python -m bench.few_shot "$tasks" data/laptop-14m/nearest --shots=3 --nearest --init_from=out/laptop-14m
for variant in shots nearest; do
    files=
    for task in tf_2 tf_4 mouse_0 mouse_1 mouse_2 mouse_3 prom_core_tata; do
        files=$files,data/laptop-14m/$variant/$task.dev.json
    done
    score "$variant" "${files#,}" --both_strands
done
