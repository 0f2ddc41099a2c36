"""
Draw the loss of runs from their log.jsonl, bits per base of DNA and bits per byte of English; or the
scores of runs from their scores.json, beside what they have to be compared with.

    pip install matplotlib
    python assets/plot.py out/laptop                            # writes out/laptop/loss.png
    python assets/plot.py out/a out/b out/c --out=loss.png      # several runs, side by side
    python assets/plot.py --scores out/laptop-instruct          # writes out/laptop-instruct/scores.png
"""
import argparse
import json
import os
import sys

import matplotlib

matplotlib.use("Agg")       # to a file; no screen is needed
import matplotlib.pyplot as plt

PANELS = {"bits_per_base": "DNA: bits per base", "bits_per_byte": "English: bits per byte"}

# MCC on GUE, in the names of prepare.py. The paper's is recomputed from its published answers, on a
# random split of its own (Wang Liang, 2024, arXiv 2410.16917). DNABERT-2's, one model fine-tuned for
# each task, is on the official test splits (Zhou et al., 2023, arXiv 2306.15006).
PUBLISHED = {
    "DNAHLM": {"prom_300_all": .841, "prom_core_all": .691, "splice_reconstructed": .668},
    "DNABERT-2": {"prom_300_all": .868, "prom_300_notata": .943, "prom_300_tata": .716,
                  "prom_core_all": .694, "prom_core_notata": .680, "prom_core_tata": .742,
                  "tf_0": .720, "tf_1": .761, "tf_2": .665, "tf_3": .585, "tf_4": .774,
                  "mouse_0": .568, "mouse_1": .848, "mouse_2": .793, "mouse_3": .665, "mouse_4": .527,
                  "splice_reconstructed": .850},
}


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


def draw_loss(folders, path):
    """Draw the runs in `folders` into an image: a panel for each modality, a line for each run."""
    figure, axes = plt.subplots(1, 2, figsize=(9, 3.4), constrained_layout=True)
    for folder in folders:
        evaluations = read_log(folder)
        for panel, key in zip(axes, PANELS):
            known = [(e["tokens"] / 1e6, e[key]) for e in evaluations if e[key] is not None]
            if known:
                x, y = zip(*known)
                name = os.path.basename(os.path.normpath(folder))
                panel.plot(x, y, marker=".", linewidth=1.5, label=f"{name}: {y[-1]:.3f}")
    for panel, title in zip(axes, PANELS.values()):
        panel.set(title=title, xlabel="tokens seen, millions")
        panel.grid(alpha=0.3)
        panel.spines[["top", "right"]].set_visible(False)
        panel.legend(frameon=False)     # each run with the loss that it ended with
    figure.savefig(path, dpi=150)


def read_scores(folder):
    """-> {task: its scores} of the scores.json in a folder"""
    path = os.path.join(folder, "scores.json")
    with open(path, encoding="utf-8") as f:
        tasks = json.load(f)["tasks"]
    return {name: s for name, s in tasks.items() if s["mcc"] is not None}


def draw_scores(folders, path):
    """Draw the MCC of each task into an image: the runs in `folders` with their 95% intervals, the
    floor of 6-mers that the first of them knows, and the published figures."""
    runs = [read_scores(folder) for folder in folders]
    names = sorted(runs[0], reverse=True)       # the first task is on top
    place = {name: y for y, name in enumerate(names)}
    figure, axis = plt.subplots(figsize=(8, 1.2 + 0.27 * len(names)), constrained_layout=True)
    axis.set_yticks(range(len(names)), [name + ("" if runs[0][name].get("tuned", True) else " *")
                                        for name in names])
    axis.axvline(0, color="black", linewidth=0.8)
    for i, (folder, scores) in enumerate(zip(folders, runs)):
        scores = {name: s for name, s in scores.items() if name in place}
        offset = 0.2 * ((len(runs) - 1) / 2 - i)        # side by side, not on top of each other
        y = [place[name] + offset for name in scores]
        mcc = [s["mcc"] for s in scores.values()]
        axis.hlines(y, *zip(*(s["mcc_interval"] for s in scores.values())), color=f"C{i}", linewidth=2)
        axis.plot(mcc, y, "o", color=f"C{i}", label=os.path.basename(os.path.normpath(folder)))
    floor = {name: s["kmer_mcc"] for name, s in runs[0].items() if s.get("kmer_mcc") is not None}
    markers = {"6-mers, a linear model": ("|", "black", floor),
               "DNAHLM, the paper": ("x", "tab:red", PUBLISHED["DNAHLM"]),
               "DNABERT-2": ("D", "tab:gray", PUBLISHED["DNABERT-2"])}
    for label, (marker, color, found) in markers.items():
        found = {name: mcc for name, mcc in found.items() if name in place}
        if found:
            axis.plot(found.values(), [place[name] for name in found], marker, color=color, label=label,
                      markersize=12 if marker == "|" else 6, markerfacecolor="none", linestyle="none")
    axis.set(xlabel="MCC" + ("" if all(s.get("tuned", True) for s in runs[0].values())
                             else "   (* not tuned on)"))
    axis.set_ylim(-0.7, len(names) - 0.3)
    axis.grid(alpha=0.3)
    axis.spines[["top", "right"]].set_visible(False)
    figure.legend(loc="outside upper center", ncols=4, frameon=False)
    figure.savefig(path, dpi=150)


def main():
    parser = argparse.ArgumentParser(description="Draw the loss of runs from their log.jsonl, or "
                                                 "their scores from scores.json.")
    parser.add_argument("folders", nargs="+", metavar="out/NAME", help="folder that train.py or "
                                                                       "instruct.py wrote")
    parser.add_argument("--scores", action="store_true", help="draw scores.json, not log.jsonl")
    parser.add_argument("--out", help="image to write: .png, .svg, .pdf; for one run "
                                      "out/NAME/loss.png or scores.png")
    args = parser.parse_args()
    name = "scores.png" if args.scores else "loss.png"
    if len(args.folders) > 1 and not args.out:
        parser.error(f"several runs: where to? Give --out={name}")
    path = args.out or os.path.join(args.folders[0], name)
    try:
        (draw_scores if args.scores else draw_loss)(args.folders, path)
    except (OSError, ValueError) as e:
        sys.exit(f"error: {e}")
    print(f"wrote {path}")


if __name__ == "__main__":
    main()
