#!/usr/bin/env bash
# What the laptop model says of tasks that it was not tuned on, in four ways; each beside the vote of
# the nearest training rows, which needs no model. Run results/laptop.sh first.
set -euo pipefail
cd "$(dirname "$0")/.."

tasks=data/laptop/tasks
mkdir -p out/zero-shot

# The vote, and task files in which the three nearest training rows are in the prompt.
python -m bench.few_shot $tasks data/laptop/nearest --shots=3 --nearest --init_from=out/laptop

# 1. Pretrained only: the likeliest label, and the label whose likelihood rises most.
python -m bench.calibrate config/laptop.toml --init_from=out/laptop --scores=out/zero-shot/pretrained.json

# 2. Tuned on all tasks, asked in words that it has not seen.
python -m bench.few_shot $tasks data/laptop/reworded --reworded
python instruct.py config/laptop.toml --init_from=out/laptop-instruct --epochs=0 \
    --eval_tasks='data/laptop/reworded/*.dev.json' --scores=out/zero-shot/reworded.json

# 3. Five tasks left out of tuning, with the likeliest label and the one that rises most.
left_out=mouse_1,tf_3,EMP_H3K79me3,prom_core_tata,splice_reconstructed
files=
for task in ${left_out//,/ }; do
    files=$files,$tasks/$task.dev.json
done
python instruct.py config/laptop.toml --leave_out=$left_out --out_dir=out/zero-shot/left-out \
    --eval_tasks="${files#,}" --max_steps=2000 --eval_interval=1000
python -m bench.calibrate config/laptop.toml --init_from=out/zero-shot/left-out \
    --eval_tasks="${files#,}" --scores=out/zero-shot/left-out-calibrated.json

# 4. The same, with the three nearest training rows in every prompt, in tuning and asking.
python instruct.py config/laptop.toml --leave_out=$left_out --out_dir=out/zero-shot/left-out-nearest \
    --tasks='data/laptop/nearest/*.train.json' \
    --eval_tasks="$(sed s,/tasks/,/nearest/,g <<< "${files#,}")" --max_steps=2000 --eval_interval=1000
