#!/usr/bin/env bash
# What the laptop model says of five tasks that it was not tuned on, in four ways; each beside the vote
# of the nearest training rows, which needs no model. Run results/laptop.sh first. STEPS: of tuning.
set -euo pipefail
cd "$(dirname "$0")/.."

tasks=data/laptop/tasks
out=out/zero-shot
steps=${STEPS:-500}
left_out=mouse_1,tf_3,EMP_H3K79me3,prom_core_tata,splice_reconstructed
mkdir -p $out

# The dev files of the five tasks in a folder, comma-separated.
dev() {
    printf "$1/%s.dev.json\n" ${left_out//,/ } | paste -sd,
}
five=$(dev $tasks)
nearest=$(dev data/laptop/nearest)
reworded=$(dev data/laptop/reworded)

# Tune on the 22 others.
tune() {
    python instruct.py config/laptop.toml --leave_out=$left_out --max_steps="$steps" --eval_interval="$steps" "$@"
}

# The vote, and prompts that begin with the three nearest training rows and their labels.
if [ ! -d data/laptop/reworded ]; then
    python -m bench.few_shot $tasks data/laptop/nearest --shots=3 --nearest --rows=1500 --init_from=out/laptop
    python -m bench.few_shot $tasks data/laptop/reworded --reworded
fi

# 1. Pretrained only: the likeliest label, and the label whose likelihood rises most.
python -m bench.calibrate config/laptop.toml --init_from=out/laptop --eval_tasks="$five" --scores=$out/pretrained.json

# 2. Tuned on all 27 tasks, asked in words that it has not seen.
python instruct.py config/laptop.toml --init_from=out/laptop-instruct --epochs=0 --eval_tasks="$reworded" --scores=$out/reworded.json

# 3. Tuned on the others: the likeliest label, and the one that rises most.
tune --out_dir=$out/left-out --eval_tasks="$five"
python -m bench.calibrate config/laptop.toml --init_from=$out/left-out --eval_tasks="$five" --scores=$out/left-out-calibrated.json

# 4. The same, with the nearest training rows in every prompt, in tuning and in asking.
tune --out_dir=$out/nearest --tasks='data/laptop/nearest/*.train.json' --eval_tasks="$nearest"
