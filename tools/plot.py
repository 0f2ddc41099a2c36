"""
Draw runs, or print their scores side by side.

    python -m tools.plot out/laptop                       # the loss, to out/laptop/loss.png
    python -m tools.plot out/a out/b --out=loss.png       # several runs in one picture
    python -m tools.plot --scores out/laptop-instruct     # MCC per task, to scores.png there
    python -m tools.plot --confusion out/laptop-instruct  # which labels are taken for which
    python -m tools.plot --compare out/a out/b+out/c      # a table of MCC; b+c: mean ± std
    python -m tools.plot --explain why.tsv --mark "TATA box:80-88"    # which bases matter

The loss comes from log.jsonl, in bits per base, per byte, and whatever else train.py logs. The scores
come from scores.json. What a label depends on comes from sample.py --explain. Pictures need
matplotlib (`pip install matplotlib`), the table does not.
"""
import argparse
import csv
import json
import math
import os
import re
from statistics import mean, stdev

import config
from dna.read import read_lines

# MCC on GUE, under the task names that prepare.py gives. The DNAHLM paper's are recomputed from
# its published answers, on a random split of its own (Wang Liang, 2024, arXiv 2410.16917).
# DNABERT-2 is one model fine-tuned per task, on the official test splits (Zhou et al., 2023,
# arXiv 2306.15006).
DNAHLM = {"prom_300_all": .841, "prom_core_all": .691, "splice_reconstructed": .668}
DNABERT_2 = {
    "prom_300_all": .868, "prom_300_notata": .943, "prom_300_tata": .716,
    "prom_core_all": .694, "prom_core_notata": .680, "prom_core_tata": .742,
    "tf_0": .720, "tf_1": .761, "tf_2": .665, "tf_3": .585, "tf_4": .774,
    "mouse_0": .568, "mouse_1": .848, "mouse_2": .793, "mouse_3": .665, "mouse_4": .527,
    "splice_reconstructed": .850,
}


def pyplot():
    """-> matplotlib.pyplot, drawing into files; ValueError where matplotlib is missing"""
    try:
        import matplotlib
    except ModuleNotFoundError:
        raise ValueError("matplotlib is missing, which draws the pictures: "
                         "pip install matplotlib") from None
    matplotlib.use("Agg")       # needs no screen
    from matplotlib import pyplot as plt
    return plt


def run_name(path):
    """-> the name of a run in a legend: out/laptop/ -> laptop"""
    return os.path.basename(os.path.normpath(path))


def tidy(axis):
    """The look that all panels share: a light grid, no box."""
    axis.grid(alpha=0.3)
    axis.spines[["top", "right"]].set_visible(False)


# ----------------------------------------------------------------------------------------------
# The loss

def read_log(folder):
    """-> the evaluations of a pretraining run, a list of dicts with "tokens" (seen so far) and
    "bits_per_base" or other units; ValueError where there are none"""
    path = os.path.join(folder, "log.jsonl")
    tokens, evaluations = 0, []
    with open(path, encoding="utf-8") as f:
        for number, text in enumerate(f, start=1):
            try:
                line = json.loads(text)
            except json.JSONDecodeError:
                raise ValueError(f"{path}: line {number}: not JSON: was the file cut short? "
                                 "Remove that line") from None
            # an evaluation has no "tokens": they are those of the last training line before it
            tokens = line.get("tokens", tokens)
            if any(value for key, value in line.items() if key.startswith("bits_per_")):
                evaluations.append(line | {"tokens": tokens})
    if not evaluations:
        raise ValueError(f"{path}: no evaluation of held-out text in it: give a folder that "
                         "train.py wrote, after eval_interval steps or more")
    return evaluations


def draw_loss(folders, out):
    """Draw pretraining runs: a panel for each unit of the loss, a line for each run. out: the image"""
    logs = {folder: read_log(folder) for folder in folders}
    units = sorted({key for log in logs.values() for e in log for key in e
                    if key.startswith("bits_per_") and e[key]})
    plt = pyplot()
    figure, axes = plt.subplots(1, len(units), figsize=(4.5 * len(units), 3.4), squeeze=False,
                                constrained_layout=True)
    for axis, unit in zip(axes[0], units):
        for i, (folder, log) in enumerate(logs.items()):
            points = [(e["tokens"] / 1e6, e[unit]) for e in log if e.get(unit)]
            if points:
                label = f"{run_name(folder)}: {points[-1][1]:.3f}"      # the loss it ended with
                axis.plot(*zip(*points), marker=".", linewidth=1.5, color=f"C{i}", label=label)
        axis.set(title=unit.replace("_", " "), xlabel="tokens seen, millions")
        tidy(axis)
        axis.legend(frameon=False)
    figure.savefig(out, dpi=150)


# ----------------------------------------------------------------------------------------------
# The scores

def read_scores(path):
    """path: a scores.json or its folder -> {task: its scores} of the tasks that have an MCC"""
    path = os.path.join(path, "scores.json") if os.path.isdir(path) else path
    try:
        with open(path, encoding="utf-8") as f:
            tasks = json.load(f)["tasks"]
        scores = {name: s for name, s in tasks.items() if s.get("mcc") is not None}
    except (ValueError, KeyError, TypeError, AttributeError):
        raise ValueError(f"{path}: not a scores.json that instruct.py wrote") from None
    if not scores:
        raise ValueError(f"{path}: no task with an MCC in it: score files that have choices")
    return scores


def draw_scores(paths, out):
    """Draw the MCC of each task: the runs with their 95% intervals, and beside them what the first
    run knows of baselines and what was published. out: the image"""
    plt = pyplot()
    runs = [read_scores(path) for path in paths]
    first = runs[0]
    row = {name: y for y, name in enumerate(sorted(first, reverse=True))}   # the first on top
    figure, axis = plt.subplots(figsize=(8, 1.2 + 0.27 * len(row)), constrained_layout=True)

    # the runs side by side, each a little below the one before
    for i, (path, scores) in enumerate(zip(paths, runs)):
        shift = 0.2 * ((len(runs) - 1) / 2 - i)
        draw_run(axis, scores, row, shift, color=f"C{i}", label=run_name(path))
    draw_references(axis, first, row)

    # a star marks the tasks that were scored but not tuned on
    untuned = {name for name in row if not first[name].get("tuned", True)}
    axis.set_yticks(range(len(row)), [f"{name} *" if name in untuned else name for name in row])
    axis.set(xlabel="MCC   (* not tuned on)" if untuned else "MCC", ylim=(-0.7, len(row) - 0.3))
    axis.axvline(0, color="black", linewidth=0.8)
    tidy(axis)
    figure.legend(loc="outside upper center", ncols=4, frameon=False)
    figure.savefig(out, dpi=150)


def draw_run(axis, scores, row, shift, color, label):
    """One run: a dot for each task at its MCC, through it a line as long as its interval.
    row: {task: its y}; shift: added to y"""
    scores = {name: s for name, s in scores.items() if name in row}
    axis.plot([s["mcc"] for s in scores.values()], [row[name] + shift for name in scores], "o",
              color=color, label=label)
    for name, s in scores.items():
        if s.get("mcc_interval"):
            axis.hlines(row[name] + shift, *s["mcc_interval"], color=color, linewidth=2)


def draw_references(axis, scores, row):
    """What a run is compared with. scores: of a run, which may hold its baseline"""
    kmers = {name: s["kmer_mcc"] for name, s in scores.items() if s.get("kmer_mcc") is not None}
    references = [("6-mer baseline", "|", "black", kmers), ("DNAHLM, the paper", "x", "tab:red", DNAHLM),
                  ("DNABERT-2", "D", "tab:gray", DNABERT_2)]
    for label, marker, color, mccs in references:
        mccs = {name: mcc for name, mcc in mccs.items() if name in row}
        if mccs:
            axis.plot(mccs.values(), [row[name] for name in mccs], marker, color=color,
                      markersize=12 if marker == "|" else 6, markerfacecolor="none", label=label)


def draw_confusion(path, out):
    """Draw the confusion matrix of each task: a row per right label, a column per predicted one, in
    each cell its count and, as its shade, the share of the row. path: of scores.json or its folder"""
    scores = {name: s for name, s in read_scores(path).items() if s.get("confusion")}
    if not scores:
        raise ValueError(f"{path}: no confusion matrix in it: score the model again, by "
                         "instruct.py --epochs=0 --out_dir=NEW, and give that folder")
    plt = pyplot()
    columns = min(4, len(scores))
    rows = math.ceil(len(scores) / columns)
    figure, axes = plt.subplots(rows, columns, figsize=(3.2 * columns, 2.7 * rows), squeeze=False,
                                constrained_layout=True)
    for axis in axes.flat[len(scores):]:
        axis.set_visible(False)
    for axis, (name, s) in zip(axes.flat, scores.items()):
        # the shades, the same for all tasks
        counts = s["confusion"]
        shares = [[n / max(1, sum(row)) for n in row] for row in counts]
        axis.imshow(shares, cmap="Blues", vmin=0, vmax=1, aspect="auto")

        # the counts, in white where it is dark
        for i, row in enumerate(counts):
            for j, n in enumerate(row):
                axis.text(j, i, f"{n:,}", ha="center", va="center", fontsize=8,
                          color="white" if shares[i][j] > 0.6 else "black")
        labels = [label.replace(" ", "\n", 1) for label in s["labels"]]
        axis.set_xticks(range(len(labels)), labels, fontsize=7, rotation=20)
        axis.set_yticks(range(len(labels)), labels, fontsize=7)
        axis.set_title(f"{name}: MCC {s['mcc']:.3f}", fontsize=9)
    figure.supxlabel("predicted", fontsize=9)
    figure.supylabel("right", fontsize=9)
    figure.savefig(out, dpi=150)


def compare(columns):
    """The MCC of several runs side by side, as text.

    columns: scores.json files or their folders; `a+b` gives the mean over a and b and its sample
    standard deviation, for several seeds. The last line is the mean over the tasks that all
    columns share."""
    # for each column {task: its MCC in each of the runs}, of the tasks that all its runs have
    mccs = []
    for column in columns:
        runs = [read_scores(path) for path in column.split("+")]
        mccs.append({name: [run[name]["mcc"] for run in runs] for name in runs[0]
                     if all(name in run for run in runs)})

    # the mean over tasks is taken within each run first, so that ± is over runs there too
    names = sorted({name for column in mccs for name in column})
    shared = [name for name in names if all(name in column for column in mccs)]
    if shared:
        names.append(f"mean of {len(shared)}")
        for column in mccs:
            column[names[-1]] = [mean(run) for run in zip(*(column[name] for name in shared))]

    width = max(map(len, ["MCC", *names]))
    lines = [f"column {i}: {column}" for i, column in enumerate(columns, start=1)]
    lines += ["", f"{'MCC':{width}}" + "".join(f"{i:>15}" for i in range(1, len(columns) + 1))]
    lines += [f"{name:{width}}" + "".join(f"{cell(column.get(name)):>15}" for column in mccs)
              for name in names]
    return "\n".join(lines)


def cell(mccs):
    """[0.1, 0.3] -> "0.200 ± 0.141", [0.1] -> "0.100", None -> "" """
    if not mccs:
        return ""
    return f"{mean(mccs):.3f}" + (f" ± {stdev(mccs):.3f}" if len(mccs) > 1 else "")


# ----------------------------------------------------------------------------------------------
# Which bases matter

COLOURS = {"A": "#009E73", "C": "#0072B2", "G": "#E69F00", "T": "#D55E00"}    # Okabe and Ito, 2008
PER_ROW = 60        # bases


def read_explanation(path):
    """path: what sample.py --explain wrote -> [(name, label, [(base, mean change), ...]), ...], the
    mean over the bases that differ from the sequence's own"""
    sequences = []
    lines = (line for _, line in read_lines(path))      # it may be gzipped
    for number, line in enumerate(csv.DictReader(lines, delimiter="\t"), start=2):
        try:
            changes = [float(line[base]) for base in "ACGT" if base != line["base"]]
            if int(line["position"]) == 1:
                sequences.append((line["name"], line["label"], []))
            sequences[-1][2].append((line["base"], mean(changes)))
        except (KeyError, TypeError, ValueError, IndexError):
            raise ValueError(f"{path}: line {number}: not what sample.py --explain "
                             "wrote") from None
    if not sequences:
        raise ValueError(f"{path}: no bases in it: give what sample.py --explain wrote")
    return sequences


def read_marks(texts):
    """["TATA box:80-88"] -> [("TATA box", 80, 88)], positions from 1"""
    matches = [re.fullmatch(r"(.+):(\d+)-(\d+)", text) for text in texts]
    if None in matches:
        raise ValueError(f"--mark={texts[matches.index(None)]}: write NAME:FIRST-LAST")
    return [(m[1], int(m[2]), int(m[3])) for m in matches]


def draw_letter(axis, base, position, value):
    """A letter between 0 and `value`, upright either way"""
    from matplotlib.patches import PathPatch
    from matplotlib.textpath import TextPath
    from matplotlib.transforms import Affine2D
    letter = TextPath((0, 0), base, size=1, prop={"family": "DejaVu Sans", "weight": "bold"})
    box = letter.get_extents()
    place = Affine2D().translate(-box.x0, -box.y0).scale(0.9 / box.width, abs(value) / box.height)
    place.translate(position - 0.45, min(value, 0))
    color = COLOURS.get(base, "tab:gray")
    axis.add_patch(PathPatch(place.transform_path(letter), facecolor=color, linewidth=0))


def draw_explanation(path, out, marks=()):
    """Draw each base as high as the mean change of the label's log-odds when it is replaced, 60 of
    them a row. marks: (name, first, last) positions of what is known. out: the image"""
    sequences = read_explanation(path)
    parts = [(sequence, start) for sequence in sequences
             for start in range(0, len(sequence[2]), PER_ROW)]
    if len(parts) > 60:
        raise ValueError(f"{path}: {len(sequences)} sequences of {len(parts)} lines in all are too "
                         "many for a picture: explain fewer at a time")
    plt = pyplot()
    values = [value for *_, bases in sequences for _, value in bases]
    low, high = min(values), max(0, *values)
    room = 0.15 * (high - low or 1)        # below for the sequence, above for the marks
    figure, axes = plt.subplots(len(parts), figsize=(10, 0.4 + 1.6 * len(parts)), squeeze=False,
                                constrained_layout=True)
    for axis, ((name, label, bases), start) in zip(axes[:, 0], parts):
        # the letters, the sequence below them, and above them what is known
        for i, (base, value) in enumerate(bases[start:start + PER_ROW], start=start + 1):
            draw_letter(axis, base, i, value)
            axis.text(i, low - room, base, ha="center", va="center", fontsize=8, color="gray")
        for what, first, last in marks:
            if start < first <= start + PER_ROW:
                axis.hlines(high + room / 2, first - 0.5, last + 0.5, color="black", linewidth=2)
                axis.text((first + last) / 2, high + room, what, ha="center", fontsize=8)
        axis.set(xlim=(start + 0.4, start + PER_ROW + 0.6), ylim=(low - 2 * room, high + 2 * room))
        axis.set_xticks(range(start + 10, start + PER_ROW + 1, 10))
        axis.axhline(0, color="black", linewidth=0.8)
        tidy(axis)
        if start == 0:
            axis.set_title(f"{name}: {label}", fontsize=10, loc="left")
    figure.supylabel("change of log-odds when replaced", fontsize=9)
    figure.savefig(out, dpi=150)


def main(argv):
    parser = argparse.ArgumentParser(prog="python -m tools.plot", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+", metavar="out/NAME",
                        help="folder that train.py or instruct.py wrote, a scores.json, or what "
                             "sample.py --explain wrote")
    mode = parser.add_mutually_exclusive_group()
    mode.add_argument("--scores", action="store_true", help="draw the MCC of each task")
    mode.add_argument("--confusion", action="store_true",
                      help="draw which labels are taken for which")
    mode.add_argument("--compare", action="store_true", help="print the MCC of each task")
    mode.add_argument("--explain", action="store_true", help="draw which bases a label depends on")
    parser.add_argument("--mark", action="append", default=[], metavar="NAME:FIRST-LAST",
                        help="a known element, to show in the picture of --explain")
    parser.add_argument("--out", metavar="FILE", help="image to write: .png, .svg or .pdf")
    args = parser.parse_args(argv)

    if args.compare:
        print(compare(args.runs))
        return
    # what to draw; some kinds draw one file or folder, others several in one picture
    kind = next((name for name in ("scores", "confusion", "explain") if getattr(args, name)), "loss")
    first, *more = args.runs
    if more and kind in ("confusion", "explain"):
        raise ValueError(f"--{kind} draws one at a time: leave out {', '.join(more)}")

    # where to
    out = args.out
    if not out and kind == "explain":
        out = f"{os.path.splitext(first.removesuffix('.gz'))[0]}.png"
    elif not out:
        if more or os.path.isfile(first):
            raise ValueError(f"where should the picture go? Give --out={kind}.png")
        out = os.path.join(first, f"{kind}.png")

    if kind == "explain":
        draw_explanation(first, out, read_marks(args.mark))
    elif kind == "confusion":
        draw_confusion(first, out)
    else:
        (draw_scores if kind == "scores" else draw_loss)(args.runs, out)
    print(f"wrote {out}")


if __name__ == "__main__":
    config.run(main)
