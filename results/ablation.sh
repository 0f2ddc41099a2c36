#!/usr/bin/env bash
# Pretrain on DNA alone, on English alone, and on both. Then tune each model on the same 11 tasks.
# The model of both reads as much of each language as the others do: 500 = 230 + 270 steps. All
# three have the preset's tokenizer. Run this first:
#
#     PRESET=results/laptop-14m.toml bash results/laptop.sh
set -euo pipefail
cd "$(dirname "$0")/.."

dna=${DNA:-raw/genome.fa.gz}
english=${ENGLISH:-raw/english.txt}
prepare="--val_fraction=0.002 --tokenizer=data/laptop-14m/tokenizer.json --tasks="

python prepare.py results/laptop-14m.toml $prepare --data_dir=data/dna --dna="$dna" --english=
python prepare.py results/laptop-14m.toml $prepare --data_dir=data/english --dna= --english="$english"

python train.py results/laptop-14m.toml --data_dir=data/dna --out_dir=out/dna \
    --max_steps=230 --eval_interval=230
python train.py results/laptop-14m.toml --data_dir=data/english --out_dir=out/english \
    --max_steps=270 --eval_interval=270
python train.py results/laptop-14m.toml --out_dir=out/both --max_steps=500 --eval_interval=250

train=
dev=
for task in tf_0 tf_2 tf_4 mouse_1 mouse_2 prom_core_tata prom_300_tata prom_300_notata \
        splice_reconstructed EMP_H3 EMP_H4; do
    train=$train,data/laptop-14m/tasks/$task.train.json
    dev=$dev,data/laptop-14m/tasks/$task.dev.json
done
for run in dna english both; do
    python instruct.py results/laptop-14m.toml --init_from="out/$run" --out_dir="out/$run-instruct" \
        --tasks="${train#,}" --eval_tasks="${dev#,}" \
        --max_steps=400 --eval_interval=200 --val_fraction=0.02
done

python -m tools.plot --compare out/dna-instruct out/english-instruct out/both-instruct
