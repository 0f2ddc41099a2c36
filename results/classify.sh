#!/usr/bin/env bash
# A classifier per task on the pretrained laptop model.
# Run this first: PRESET=results/laptop-14m.toml bash results/laptop.sh
set -euo pipefail
cd "$(dirname "$0")/.."

keys="--optimizer=adamw --learning_rate=1e-3 --batch_size=32 --gradient_accumulation_steps=1
      --warmup_steps=20 --val_fraction=0.05"

python -m bench.classify results/laptop-14m.toml $keys --out_dir=out/laptop-14m-classify \
    --leave_out='EMP*' --max_steps=120 --eval_interval=120

# The histone marks have fewer rows: half the steps.
python -m bench.classify results/laptop-14m.toml $keys --out_dir=out/laptop-14m-classify-EMP \
    --tasks='data/laptop-14m/tasks/EMP*.train.json' --eval_tasks='data/laptop-14m/tasks/EMP*.dev.json' \
    --max_steps=60 --eval_interval=60
