"""
Draw runs, or print their scores side by side.

    python -m tools.plot out/laptop                     # the loss, to loss.png there
    python -m tools.plot out/a out/b --out=loss.png     # several runs in one picture
    python -m tools.plot --scores out/my-instruct       # MCC per task, to scores.png
    python -m tools.plot --confusion out/my-instruct    # the labels taken for each other
    python -m tools.plot --compare out/a out/b+out/c    # a table; b+c: mean ± std
    python -m tools.plot --explain why.tsv --mark "TATA box" 80 88  # bases that matter
    python -m tools.plot --motifs out/my                # what the motif filters look for

The loss comes from the log.jsonl of train.py or instruct.py. Scores come from
scores.json. `sample.py --explain` writes why.tsv. Pictures need matplotlib (`pip install
matplotlib`), and the table does not.
"""
import argparse
import csv
import math
import os
from collections import defaultdict

import numpy as np

import config
from config import require
from dna.metrics import HEADS, align, read_scores
from dna.read import read_lines, reverse_complement
from dna.toy import CODES, MOTIFS
from train import load_model

try:
    from matplotlib.figure import Figure
    from matplotlib.patches import PathPatch
    from matplotlib.textpath import TextPath
    from matplotlib.transforms import Bbox, BboxTransform
except ModuleNotFoundError:
    Figure = None       # the table needs none

# MCC on GUE, under the task names that prepare.py gives. The DNAHLM paper's are
# recomputed from its published answers, on a random split of its own (Wang Liang, 2024,
# arXiv 2410.16917). DNABERT-2 is one model fine-tuned per task, on the official test
# splits (Zhou et al., 2023, arXiv 2306.15006).
DNAHLM = {"prom_300_all": .841, "prom_core_all": .691, "splice_reconstructed": .668}
DNABERT_2 = {
    "prom_300_all": .868, "prom_300_notata": .943, "prom_300_tata": .716,
    "prom_core_all": .694, "prom_core_notata": .680, "prom_core_tata": .742,
    "tf_0": .720, "tf_1": .761, "tf_2": .665, "tf_3": .585, "tf_4": .774,
    "mouse_0": .568, "mouse_1": .848, "mouse_2": .793, "mouse_3": .665, "mouse_4": .527,
    "splice_reconstructed": .850,
}


def panels(n, columns, width, height):
    """-> a figure and its n axes, in so many columns, each of width x height inches"""
    require(Figure, "matplotlib is missing, which draws the pictures: pip install "
            "matplotlib")
    rows = math.ceil(n / columns)
    figure = Figure((width * columns, height * rows), dpi=150, layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False).flatten()
    for axis in axes[n:]:
        axis.set_visible(False)
    return figure, axes[:n]


def run_name(path):
    """-> the name of a run in a legend: out/laptop/scores.json -> laptop"""
    return os.path.basename(os.path.normpath(path.removesuffix("scores.json")))


# --------------------------------------------------------------------------------------
# The loss

def read_log(folder):
    """-> the curves of a run: {"loss": that of training, "val_loss": of held-out text,
    "bits_per_base": ...}, each a list of (millions of tokens predicted so far, value)"""
    path = os.path.join(folder, "log.jsonl")
    tokens, curves = 0, defaultdict(list)
    for number, text in read_lines(path):
        try:
            line = config.parse_json(text)
        except ValueError:
            raise ValueError(f"{path}: line {number}: not JSON: was the file cut short? "
                             "Remove that line") from None
        # an evaluation follows the training line that says how many tokens there were
        tokens = line.get("tokens", tokens)
        for key, value in line.items():
            if value is not None and ("loss" in key or "bits" in key):
                curves[key].append((tokens / 1e6, value))
    require("val_loss" in curves, f"{path}: no evaluation of held-out text in it: give "
            "a run that has made eval_interval steps")
    return curves


def draw_loss(folders):
    """-> a figure of runs: a panel for each unit that held-out text has bits of, and one
    for its loss, with that of training as a pale line. Each run has a colour."""
    logs = [read_log(folder) for folder in folders]
    keys = sorted({key for log in logs for key in log if key != "loss"})
    figure, axes = panels(len(keys), len(keys), 4.5, 3.4)
    for axis, key in zip(axes, keys):
        title = key.replace("_", " ")
        for i, (folder, log) in enumerate(zip(folders, logs)):
            if key == "val_loss":
                title = "loss, nats per token (pale: training)"
                axis.plot(*zip(*log["loss"]), color=f"C{i}", alpha=0.3, linewidth=1)
                axis.set_yscale("log", subs=[2, 3, 5, 7])
                axis.yaxis.set(major_formatter="{x:g}", minor_formatter="{x:g}")
            if key in log:
                # the name of the run, and the loss that it ended with
                label = f"{run_name(folder)}: {log[key][-1][1]:.3f}"
                axis.plot(*zip(*log[key]), ".-", color=f"C{i}", label=label)
        axis.set(title=title, xlabel="tokens predicted, millions")
        axis.legend(frameon=False)
        axis.grid(alpha=0.3)
    return figure


# --------------------------------------------------------------------------------------
# The scores

def draw_scores(paths):
    """-> a figure of the MCC of each task: of each run with its 95% interval, of the
    baselines, and of what was published

    paths: scores.json files or their folders. Those of the same name are one run,
    scored on different tasks
    """
    runs, known = defaultdict(dict), {}
    for path in paths:
        run, scores = runs[run_name(path)], read_scores(path)
        require(not run.keys() & scores.keys(),
                f"{path}: another run has its name: rename its folder")
        run |= scores
        known = scores | known
    y = {task: i for i, task in enumerate(sorted(known, reverse=True))}
    height = 1.2 + (0.2 + 0.07 * len(runs)) * len(y)
    figure, (axis,) = panels(1, 1, 8, height)

    def draw(label, mccs, shift=0, **style):
        """A mark for each task. mccs: {task: MCC}; shift: added to y"""
        points = [(mcc, y[task] + shift) for task, mcc in mccs.items() if task in y]
        axis.plot(*zip(*points), linestyle="", label=label, **style)

    # the runs, each a little below the one before, with lines as long as the intervals
    for i, (name, scores) in enumerate(runs.items()):
        shift, color = 0.4 - 0.8 * (i + 0.5) / len(runs), f"C{i}"
        draw(name, {task: s["mcc"] for task, s in scores.items()}, shift, marker="o",
             markersize=5, color=color)
        for task, s in scores.items():
            if interval := s.get("mcc_interval"):
                axis.hlines(y[task] + shift, *interval, color=color, linewidth=2)

    # what they are compared with
    for key, marker in (("kmer_mcc", "|"), ("cnn_mcc", "+")):
        mccs = {task: s[key] for task, s in known.items() if key in s}
        draw(HEADS[key], mccs, marker=marker, markersize=12, color="black")
    draw("DNAHLM, the paper", DNAHLM, marker="x", color="tab:red")
    draw("DNABERT-2", DNABERT_2, marker="D", fillstyle="none", color="tab:gray")

    axis.set_yticks(range(len(y)), y)
    axis.set(xlabel="MCC", ylim=(-0.7, len(y) - 0.3))
    axis.axvline(0, color="black", linewidth=0.8)
    axis.grid(alpha=0.3)
    figure.legend(loc="outside upper center", ncols=4, frameon=False)
    return figure


def draw_confusion(path):
    """-> a figure of the confusion matrix of each task: a row per right label, a column
    per predicted one. Each cell shows its count, and as its shade the share of its row.

    path: of a scores.json or its folder
    """
    scores = {task: s for task, s in read_scores(path).items() if s.get("confusion")}
    require(scores, f"{path}: no confusion matrix in it: score the model again, by "
            "instruct.py --epochs=0 --out_dir=NEW, and give that folder")
    figure, axes = panels(len(scores), min(4, len(scores)), 3.2, 2.7)
    for axis, (task, s) in zip(axes, scores.items()):
        # the shades, the same for all tasks
        counts = np.array(s["confusion"])
        shares = counts / counts.sum(axis=1, keepdims=True).clip(min=1)
        axis.imshow(shares, cmap="Blues", vmin=0, vmax=1, aspect="auto")

        # the counts, in white where it is dark
        for (i, j), count in np.ndenumerate(counts):
            axis.text(j, i, f"{count:,}", ha="center", va="center", fontsize=8,
                      color="white" if shares[i, j] > 0.6 else "black")
        labels = [label.replace(" ", "\n", 1) for label in s["labels"]]
        axis.set_xticks(range(len(labels)), labels, fontsize=7, rotation=20)
        axis.set_yticks(range(len(labels)), labels, fontsize=7)
        axis.set_title(f"{task}: MCC {s['mcc']:.3f}", fontsize=9)
    figure.supxlabel("predicted", fontsize=9)
    figure.supylabel("right", fontsize=9)
    return figure


def compare(columns):
    """The MCC of several runs side by side, as text.

    columns: scores.json files or their folders. For several seeds, `a+b` gives the mean
    over a and b and its sample standard deviation. The last line is the mean over the
    tasks that all columns share.
    """
    # for each column {task: its MCC in each run}, of the tasks that all its runs have
    mccs = []
    for column in columns:
        runs = [read_scores(path) for path in column.split("+")]
        tasks = set.intersection(*map(set, runs))
        mccs.append({task: np.array([run[task]["mcc"] for run in runs])
                     for task in tasks})
    tasks, shared = sorted(set().union(*mccs)), set.intersection(*map(set, mccs))

    # take the mean over tasks within each run first, so that ± is over runs there too
    if shared:
        tasks.append(f"mean of {len(shared)}")
        for column in mccs:
            column[tasks[-1]] = sum(column[task] for task in shared) / len(shared)

    heads = [f"column {i}: {column}" for i, column in enumerate(columns, start=1)]
    rows = [["MCC", *map(str, range(1, len(columns) + 1))]]
    rows += [[task, *(cell(column.get(task)) for column in mccs)] for task in tasks]
    return "\n".join([*heads, "", align(rows)])


def cell(mccs):
    """[0.1, 0.3] -> "0.200 ± 0.141", [0.1] -> "0.100", None -> "" """
    if mccs is None:
        return ""
    spread = f" ± {mccs.std(ddof=1):.3f}" if len(mccs) > 1 else ""
    return f"{mccs.mean():.3f}{spread}"


# --------------------------------------------------------------------------------------
# Sequence logos: which bases matter

# Okabe and Ito, 2008
COLOURS = {"A": "#009E73", "C": "#0072B2", "G": "#E69F00", "T": "#D55E00"}
PER_ROW = 75        # bases at most


def draw_logo(axis, columns, first=1):
    """Draw a sequence logo: letters on top of each other, the highest uppermost. A
    letter of negative height hangs from 0, upright.

    columns: {letter: height} of each position, from x = first on
    """
    for x, column in enumerate(columns, start=first):
        top = 0
        for letter in sorted(column, key=column.get):
            glyph = TextPath((0, 0), letter, prop={"weight": "bold"})
            low, top = sorted([top, top + column[letter]])
            box = Bbox([[x - 0.45, low], [x + 0.45, top]])
            path = BboxTransform(glyph.get_extents(), box).transform_path(glyph)
            color = COLOURS.get(letter, "gray")
            axis.add_patch(PathPatch(path, color=color, linewidth=0))
    axis.autoscale()


def read_explanation(path):
    """path: what sample.py --explain wrote -> a list of (title, columns of a logo), a
    letter as high as the log-odds of the label fall when it is replaced, the mean over
    the three others"""
    sequences, lines = [], [line for _, line in read_lines(path)]
    separator = max(",\t", key=lines[0].count)
    for number, line in enumerate(csv.DictReader(lines, delimiter=separator), start=2):
        try:
            base = line["base"]
            falls = [-float(line[other]) for other in "ACGT" if other != base]
            if int(line["position"]) == 1:
                title = f"{line['name']}: {line['label']}, {line['question']}"
                sequences.append((title, []))
            sequences[-1][1].append({base: np.mean(falls)})
        except (KeyError, TypeError, ValueError, IndexError):
            raise ValueError(f"{path}: line {number}: not what sample.py --explain "
                             "wrote") from None
    require(sequences, f"{path}: no bases in it: give what sample.py --explain wrote")
    return sequences


def draw_explanation(path, marks):
    """-> a figure in which each base is as high as the label's log-odds fall when it is
    replaced

    path: what sample.py --explain wrote
    marks: known elements, (name, first, last), positions from 1
    """
    # the lines of a sequence have the same number of bases, or one more
    rows = [(title, columns, part) for title, columns in read_explanation(path)
            for part in np.array_split(range(len(columns)),
                                       math.ceil(len(columns) / PER_ROW))]
    require(len(rows) <= 60, f"{path}: {len(rows)} lines of sequences are too many for "
            "a picture: explain fewer at a time")
    figure, axes = panels(len(rows), 1, 10, 1.8)

    # one scale for all, with room below for the sequence and above for the marks
    values = [columns[i].values() for _, columns, part in rows for i in part]
    low, high = min(0, *map(min, values)), max(map(max, values))
    room = 0.15 * (high - low or 1)
    for axis, (title, columns, part) in zip(axes, rows):
        draw_logo(axis, [columns[i] for i in part], part[0] + 1)
        for i in part:
            axis.text(i + 1, low - room, *columns[i], ha="center", va="center",
                      fontsize=8)
        # what lies in another line is clipped
        for name, *ends in marks:
            first, last = map(int, ends)
            axis.hlines(high + room / 2, first - 0.5, last + 0.5, color="black")
            axis.text((first + last) / 2, high + room, name, ha="center", fontsize=8,
                      clip_on=True)
        axis.set(xlim=(part[0] + 0.4, part[-1] + 1.6),
                 ylim=(low - 2 * room, high + 2 * room))
        axis.axhline(0, color="black", linewidth=0.8)
        axis.grid(alpha=0.3)
        if part[0] == 0:
            axis.set_title(title, fontsize=10, loc="left")
    figure.supylabel("log-odds lost\nwhen replaced", fontsize=9)
    return figure


# --------------------------------------------------------------------------------------
# What the motif filters look for

# The toy world's motifs, and some that are frequent in human promoters (Xie et al., 2005,
# "Systematic discovery of regulatory motifs in human promoters and 3' UTRs")
KNOWN = MOTIFS | {"NRF-1": "RCGCANGCGY", "MYC": "CACGTG", "ELK-1": "SCGGAAGY",
                  "NF-Y": "GATTGGY", "ATF3": "TGAYRTCA", "YY1": "GCCATNTTG"}
OVERLAP = 6         # bases that a filter and a motif must share
SHUFFLED = 200      # copies of each motif in another order, to compare it with
DRAWN = 40          # filters


def read_filters(folder):
    """-> the motif filters (F, W, 4) of a model, the strongest first, by the norms of a
    filter's weights and of its column in c_proj. At each position the mean over the four
    bases is subtracted, because it says nothing about which base the filter looks for."""
    model, *_ = load_model(folder)
    require(model.config.motifs, f"{folder}: a model without motif filters: train it with "
            "--motifs=128")
    bases = model.transformer.bases
    filters = bases.filters.weight.detach().numpy().reshape(-1, bases.WIDTH, 4)
    filters = filters - filters.mean(axis=2, keepdims=True)
    output_norm = bases.c_proj.weight.detach().norm(dim=0).numpy()
    return filters[np.argsort(-output_norm * np.linalg.norm(filters, axis=(1, 2)))]


def profile(consensus):
    """-> (L, 4), the probability of each base less 1/4, so that the mean is 0, as a
    filter's is"""
    return np.array([[(base in CODES[code]) / len(CODES[code]) - 0.25 for base in "ACGT"]
                     for code in consensus])


def correlation(motif, filters):
    """motif (L, 4), filters (F, W, 4), all of mean 0 -> the correlation of each filter
    with the motif, where they fit best (F,)"""
    best, (n, width, _) = np.full(len(filters), -1.0), filters.shape
    for shift in range(OVERLAP - width, len(motif) - OVERLAP + 1):
        first, last = max(0, shift), min(len(motif), shift + width)
        x = motif[first:last].ravel()
        y = filters[:, first - shift:last - shift].reshape(n, -1)
        norms = np.linalg.norm(x) * np.linalg.norm(y, axis=1)
        best = np.maximum(best, y @ x / np.maximum(norms, 1e-9))
    return best


def find_motifs(filters):
    """-> a list of (name, consensus on one strand, its best filter, their correlation, the
    share of shuffled motifs whose best filter correlates at least as well), a row for each
    known motif"""
    rng, found = np.random.default_rng(0), []
    for name, consensus in KNOWN.items():
        # on both strands
        strands = [consensus, reverse_complement(consensus)]
        fits = [correlation(profile(strand), filters) for strand in strands]
        r, k = max((fit.max(), k) for k, fit in enumerate(fits))
        chance = [max(correlation(profile(rng.permutation(list(s))), filters).max()
                      for s in strands) for _ in range(SHUFFLED)]
        found.append((name, strands[k], int(fits[k].argmax()), r,
                      np.mean(np.array(chance) >= r)))
    return found


def draw_motifs(folder):
    """-> a figure of the strongest filters as logos, and of those that fit a known motif
    better than 95% of its shuffled copies, with its name. Prints all known motifs.

    Shapes: F filters, W their width, L length of a motif
    """
    filters = read_filters(folder)
    motifs = find_motifs(filters)
    rows = [["motif", "consensus", "filter", "correlation", "shuffled, as good"]]
    rows += [[name, consensus, str(i), f"{r:.2f}", f"{share:.1%}"]
             for name, consensus, i, r, share in motifs]
    print(align(rows))

    # the strongest filters, and every filter that a known motif names
    named = [(i, f"{name} {r:.2f}") for name, _, i, r, share in motifs if share < 0.05]
    shown = sorted({*range(min(DRAWN, len(filters))), *(i for i, _ in named)})
    figure, axes = panels(len(shown), 8, 1.7, 1.1)
    for axis, i in zip(axes, shown):
        axis.set_axis_off()
        # the letters that are above 0
        draw_logo(axis, [dict(zip("ACGT", column)) for column in filters[i].clip(min=0)])
        names = [name for best, name in named if best == i]
        axis.set_title(f"{i}  {', '.join(names)}", fontsize=7)
    return figure


# --------------------------------------------------------------------------------------

KINDS = {"scores": "draw the MCC of each task",
         "confusion": "draw which labels are taken for which",
         "compare": "print the MCC of each task",
         "explain": "draw which bases a label depends on",
         "motifs": "draw what the motif filters look for"}


def main(argv):
    parser = argparse.ArgumentParser(
        prog="python -m tools.plot", description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+", metavar="out/NAME",
                        help="a folder that train.py or instruct.py wrote, a "
                             "scores.json, or what sample.py --explain wrote")
    flags = parser.add_mutually_exclusive_group()
    for kind, what in KINDS.items():
        flags.add_argument(f"--{kind}", dest="kind", action="store_const", const=kind,
                           default="loss", help=what)
    parser.add_argument("--mark", action="append", default=[], nargs=3,
                        metavar=("NAME", "FIRST", "LAST"),
                        help="a known element, to show in the picture of --explain")
    parser.add_argument("--out", metavar="FILE",
                        help="image to write: .png, .svg or .pdf; by default a .png in "
                             "the first folder, or beside the first file")
    args = parser.parse_args(argv)
    first, kind = args.runs[0], args.kind
    if kind == "compare":
        print(compare(args.runs))
        return

    # of several runs, or of one
    of_several = {"loss": draw_loss, "scores": draw_scores}
    of_one = {"confusion": draw_confusion, "motifs": draw_motifs,
              "explain": lambda path: draw_explanation(path, args.mark)}
    require(kind in of_several or len(args.runs) == 1,
            f"--{kind} draws one at a time: leave out {', '.join(args.runs[1:])}")
    figure = of_one[kind](first) if kind in of_one else of_several[kind](args.runs)

    # in the first folder, or beside the first file
    stem = os.path.join(first, kind) if os.path.isdir(first) else \
        os.path.splitext(first.removesuffix(".gz"))[0]
    out = args.out or f"{stem}.png"
    figure.savefig(out)
    print(f"wrote {out}")


if __name__ == "__main__":
    config.run(main)
