#!/usr/bin/env bash
# What is a split still worth when the network sees bases? Train with each of the four splits, without
# and with motif filters, on the toy world or on three real tasks.
#
#     bash results/splits.sh toy                          # 15 minutes on two CPU cores
#     bash results/splits.sh real                         # two hours
#
# (The times are estimates, for cores with fast bfloat16.) Several copies can share the work, each
# with some of the splits and one core. These two took 70 minutes:
#
#     export OMP_NUM_THREADS=1
#     SPLITS=mixed1 bash results/splits.sh real & SPLITS="mixed mixed6 none" bash results/splits.sh real; wait
#
# When all have ended, the command without SPLITS prints the table and draws the picture.
#
# The eight models of a world are of the same size, apart from the filters. Each reads the same share
# of the same text (READ million bases and bytes), and then each row equally often (EPOCHS passes).
# Only the steps of pretraining differ: the same text has more tokens when it is read base by base.
# The context holds every prompt of every split whole. No merges are undone in tuning, because mixed1
# has none of DNA.
#
# A run that has its scores is skipped, so the same command goes on where it was stopped. Remove
# out/splits before you change READ or EPOCHS. "real" reads what results/data.sh downloads, unless
# DNA, ENGLISH and GUE name other files.
set -euo pipefail
cd "$(dirname "$0")/.."

world=${1:-}
if [ "$world" = toy ]; then
    preset=config/toy.toml
    inputs=()
    motifs=64
    block_size=256
    batch_size=10       # rows, to make the preset's 2,560 tokens a step
    tuning=()
    scored=test
    read=${READ:-2}
    epochs=${EPOCHS:-1}
elif [ "$world" = real ]; then
    preset=config/laptop.toml
    gue=${GUE:-raw/GUE}
    inputs=(--dna="${DNA:-raw/genome.fa.gz,raw/yeast.fa.gz}" --english="${ENGLISH:-raw/english.txt}"
            --tasks="$gue/EMP/H3,$gue/mouse/2,$gue/prom/prom_core_tata")
    motifs=128
    block_size=640
    batch_size=6
    tuning=(--batch_size=16)
    scored=dev
    read=${READ:-8}
    epochs=${EPOCHS:-4}
else
    echo "give toy or real" >&2
    exit 1
fi

for split in ${SPLITS:-mixed mixed6 mixed1 none}; do
    data=data/splits/$world/$split
    if [ ! -f "$data/meta.json" ]; then
        python prepare.py "$preset" ${inputs[@]+"${inputs[@]}"} --data_dir="$data" --split="$split"
    fi

    # How many steps the text to read takes, as tokens of this split.
    steps=$(python -c "
import json
train = json.load(open('$data/meta.json'))['bins']['train.bin']
tokens = train['tokens'] / (train['bases'] + train['bytes']) * $read * 1e6
print(round(tokens / ($block_size * $batch_size)))")

    for run in "$split" "$split-motifs"; do
        pretrained=out/splits-pretrained/$world/$run
        tuned=out/splits/$world/$run
        if [ -f "$tuned/scores.json" ]; then
            continue
        fi
        filters=0
        if [ "$run" = "$split-motifs" ]; then
            filters=$motifs
        fi
        python train.py "$preset" --data_dir="$data" --out_dir="$pretrained" --motifs="$filters" \
            --block_size="$block_size" --batch_size="$batch_size" \
            --max_steps="$steps" --eval_interval="$steps" --overwrite
        python instruct.py "$preset" --init_from="$pretrained" --out_dir="$tuned" \
            --tasks="$data/tasks/*.train.json" --eval_tasks="$data/tasks/*.$scored.json" \
            --max_steps=0 --epochs="$epochs" --undo_merges=0 ${tuning[@]+"${tuning[@]}"} --overwrite
    done
done

if [ -n "${SPLITS:-}" ]; then
    exit
fi

# In the order of the lesson's tables: the four splits without filters, then with them.
python -m tools.plot --compare "out/splits/$world"/{mixed,mixed6,mixed1,none} \
    "out/splits/$world"/{mixed,mixed6,mixed1,none}-motifs
python -m tools.plot --scores out/splits/*/{mixed,mixed6,mixed1,none} \
    out/splits/*/{mixed,mixed6,mixed1,none}-motifs --out=assets/splits.png
