#!/usr/bin/env bash
# Run the laptop preset, from raw files to the table of 27 tasks. On a CPU core with fast bfloat16
# it takes some three and a quarter hours; half an hour of this is the CNN baseline. Another core can
# run another seed beside it (OMP_NUM_THREADS=1).
#
#     bash results/laptop.sh             # out/laptop, out/laptop-instruct
#     bash results/laptop.sh 2           # another seed: out/laptop-seed2, out/laptop-seed2-instruct
#
# DNA, ENGLISH and TASKS name other input files, separated by commas. PRESET names another preset.
set -euo pipefail
cd "$(dirname "$0")/.."

preset=${PRESET:-config/laptop.toml}
dna=${DNA:-raw/genome.fa.gz,raw/yeast.fa.gz}
english=${ENGLISH:-raw/english.txt}
tasks=${TASKS:-raw/GUE}
seed=${1:-1337}
data=data/$(basename "$preset" .toml)
out=out/$(basename "$preset" .toml)
if [ "$seed" != 1337 ]; then
    out=$out-seed$seed
fi

# The data and the baselines are the same for every seed.
if [ ! -d "$data" ]; then
    python prepare.py "$preset" --dna="$dna" --english="$english" --tasks="$tasks" --val_fraction=0.002
    python -m tools.kmers "$data/tasks"
    python -m tools.cnn "$data/tasks"
fi

python train.py "$preset" --out_dir="$out" --seed="$seed"
python instruct.py "$preset" --init_from="$out" --out_dir="$out-instruct" --seed="$seed"
