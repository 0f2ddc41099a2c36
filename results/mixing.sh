#!/usr/bin/env bash
# Compare steps of one instruction with steps that mix four. The result is the held-out loss in
# log.jsonl. Run this first:
#
#     PRESET=results/laptop-14m.toml bash results/laptop.sh
set -euo pipefail
cd "$(dirname "$0")/.."

# tune NAME [--key=value ...]: tune for 150 steps of 64 rows, and write out/NAME
tune() {
    name=$1
    shift
    python instruct.py results/laptop-14m.toml --out_dir="out/$name" --max_steps=150 --warmup_steps=20 \
        --eval_interval=150 --eval_tasks=data/laptop-14m/tasks/mouse_3.dev.json "$@"
}

tune mix-64x1 --batch_size=64 --gradient_accumulation_steps=1
tune mix-16x4
tune mix-16x4-adamw --optimizer=adamw --learning_rate=1e-3
