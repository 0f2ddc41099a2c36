#!/usr/bin/env bash
# The laptop preset from raw files to the table of 27 tasks: about 90 minutes on two CPU cores.
#
#     bash results/laptop.sh             # out/laptop, out/laptop-instruct
#     bash results/laptop.sh 2           # another seed: out/laptop-seed2, out/laptop-seed2-instruct
#
# DNA, ENGLISH and TASKS name other input files, comma-separated.
set -euo pipefail
cd "$(dirname "$0")/.."

dna=${DNA:-raw/genome.fa.gz,raw/yeast.fa.gz}
english=${ENGLISH:-raw/english.txt}
tasks=${TASKS:-raw/GUE}
seed=${1:-1337}
out=out/laptop
if [ "$seed" != 1337 ]; then
    out=out/laptop-seed$seed
fi

# The data and the baseline are the same for every seed.
if [ ! -d data/laptop ]; then
    python prepare.py config/laptop.toml --dna="$dna" --english="$english" --tasks="$tasks" \
        --val_fraction=0.002
    python -m bench.kmers data/laptop/tasks
fi

python train.py config/laptop.toml --out_dir="$out" --seed="$seed"
python instruct.py config/laptop.toml --init_from="$out" --out_dir="$out-instruct" --seed="$seed"
