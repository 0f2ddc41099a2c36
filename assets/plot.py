"""
Draw the loss of runs from their log.jsonl: bits per base of DNA, bits per byte of English.

    pip install matplotlib
    python assets/plot.py out/laptop                            # writes out/laptop/loss.png
    python assets/plot.py out/a out/b out/c --out=loss.png      # several runs, side by side
"""
import argparse
import json
import os
import sys

import matplotlib

matplotlib.use("Agg")       # to a file; no screen is needed
import matplotlib.pyplot as plt

PANELS = {"bits_per_base": "DNA: bits per base", "bits_per_byte": "English: bits per byte"}


def read_log(folder):
    """-> the evaluations of a run, a list of dicts with "tokens" (seen by then), "bits_per_base" and
    "bits_per_byte"; ValueError where there is none"""
    path = os.path.join(folder, "log.jsonl")
    tokens, evaluations = 0, []
    with open(path, encoding="utf-8") as f:
        for line in map(json.loads, f):
            tokens = line.get("tokens", tokens)     # of the training line before, of the same step
            if line.get("bits_per_base") or line.get("bits_per_byte"):
                evaluations.append(line | {"tokens": tokens})
    if not evaluations:
        raise ValueError(f"{path}: no evaluation in it: train for longer, or with a smaller "
                         "eval_interval")
    return evaluations


def draw(folders, path):
    """Draw the runs in `folders` into an image: a panel for each modality, a line for each run."""
    figure, axes = plt.subplots(1, 2, figsize=(9, 3.4), constrained_layout=True)
    for folder in folders:
        evaluations = read_log(folder)
        for panel, key in zip(axes, PANELS):
            known = [(e["tokens"] / 1e6, e[key]) for e in evaluations if e[key] is not None]
            if known:
                x, y = zip(*known)
                panel.plot(x, y, marker=".", linewidth=1.5, label=os.path.basename(
                    os.path.normpath(folder)))
                panel.annotate(f"{y[-1]:.3f}", (x[-1], y[-1]), xytext=(0, -6), ha="center",
                               va="top", textcoords="offset points", fontsize=8)
    for panel, title in zip(axes, PANELS.values()):
        panel.set(title=title, xlabel="tokens seen, millions")
        panel.margins(y=0.12)
        panel.grid(alpha=0.3)
        panel.spines[["top", "right"]].set_visible(False)
    if len(folders) > 1:
        axes[1].legend(frameon=False)
    figure.savefig(path, dpi=150)


def main():
    parser = argparse.ArgumentParser(description="Draw the loss of runs from their log.jsonl.")
    parser.add_argument("folders", nargs="+", metavar="out/NAME", help="folder that train.py wrote")
    parser.add_argument("--out", help="image to write: .png, .svg, .pdf; out/NAME/loss.png for one run")
    args = parser.parse_args()
    if len(args.folders) > 1 and not args.out:
        parser.error("several runs: where to? Give --out=loss.png")
    path = args.out or os.path.join(args.folders[0], "loss.png")
    try:
        draw(args.folders, path)
    except (OSError, ValueError) as e:
        sys.exit(f"error: {e}")
    print(f"wrote {path}")


if __name__ == "__main__":
    main()
