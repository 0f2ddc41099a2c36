#!/usr/bin/env bash
# Compare Muon with AdamW on the text of the first laptop preset. Run this first:
#
#     PRESET=results/laptop-14m.toml bash results/laptop.sh
set -euo pipefail
cd "$(dirname "$0")/.."

# Two seeds of each. AdamW has nanoGPT's learning rate and twice as many steps as Muon.
for seed in 1337 2; do
    suffix=
    if [ "$seed" != 1337 ]; then
        suffix=-seed-$seed
    fi
    python train.py results/laptop-14m.toml --out_dir="out/muon$suffix" --seed="$seed" \
        --max_steps=500 --eval_interval=50
    python train.py results/laptop-14m.toml --out_dir="out/adamw$suffix" --seed="$seed" \
        --optimizer=adamw --learning_rate=6e-4 --max_steps=1000
done

# Other rates, with one seed.
python train.py results/laptop-14m.toml --out_dir=out/muon-3e-3 --learning_rate=3e-3 \
    --max_steps=500 --eval_interval=50
for rate in 1e-3 2e-3 4e-3; do
    python train.py results/laptop-14m.toml --out_dir="out/adamw-half-$rate" \
        --optimizer=adamw --learning_rate="$rate" --max_steps=500
done

python -m tools.plot out/muon out/muon-seed-2 out/adamw out/adamw-seed-2 --out=assets/loss.png
