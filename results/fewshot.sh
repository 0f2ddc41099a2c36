#!/usr/bin/env bash
# Tuned and scored with the three nearest training rows in each prompt, and without; mouse_1 and
# tf_4 are scored but not tuned on.
# Run this first: PRESET=results/laptop-14m.toml bash results/laptop.sh
set -euo pipefail
cd "$(dirname "$0")/.."

python -m bench.few_shot data/laptop-14m/tasks data/laptop-14m/nearest --shots=3 --nearest --init_from=out/laptop-14m

tune() {        # tune NAME FOLDER: five of seven tasks for 150 steps, into out/NAME
    train=
    dev=
    for task in tf_2 tf_4 mouse_0 mouse_1 mouse_2 mouse_3 prom_core_tata; do
        train=$train,$2/$task.train.json
        dev=$dev,$2/$task.dev.json
    done
    python instruct.py results/laptop-14m.toml --out_dir="out/$1" --tasks="${train#,}" \
        --eval_tasks="${dev#,}" --leave_out=mouse_1,tf_4 --max_steps=150 --warmup_steps=20 \
        --eval_interval=150
}

tune fewshot-0 data/laptop-14m/tasks
tune fewshot-3-nearest data/laptop-14m/nearest

python -m results.plot --compare out/fewshot-0 out/fewshot-3-nearest
