"""
What scores.json holds: how well predictions agree with labels, beside the baselines, as a table.
"""
import glob
import json
import math
import os

import numpy as np


def matthews(confusion):
    """Matthews correlation coefficient of a confusion matrix (right label, chosen label) of any
    number of labels (Gorodkin, 2004, "Comparing two K-category assignments by a K-category
    correlation coefficient"); 0 where all rows have one label, or are given one"""
    confusion = np.asarray(confusion, dtype=float)
    true, chosen, n = confusion.sum(axis=1), confusion.sum(axis=0), confusion.sum()
    spread = math.sqrt(n ** 2 - (true ** 2).sum()) * math.sqrt(n ** 2 - (chosen ** 2).sum())
    return float((confusion.trace() * n - true @ chosen) / spread) if spread else 0.0


def mcc_interval(confusion):
    """-> the 95% interval of the MCC by the bootstrap, from 1,000 test sets of the same size. Rows
    are drawn with replacement: equivalently, a multinomial over the cells of the matrix."""
    n = confusion.sum()
    sets = np.random.default_rng(0).multinomial(n, confusion.ravel() / n, size=1000)
    values = [matthews(cells.reshape(confusion.shape)) for cells in sets]
    return np.percentile(values, [2.5, 97.5]).tolist()


def judge(true, chosen, labels):
    """The right label of each row and the one chosen for it -> what scores.json says of them.
    "confusion" has a row per right label and a column per chosen one."""
    confusion = np.zeros((len(labels), len(labels)), dtype=int)
    for right, taken in zip(true, chosen):
        confusion[labels.index(right), labels.index(taken)] += 1
    scores = {"accuracy": None, "mcc": None, "mcc_interval": None}
    if true:
        scores = {"accuracy": confusion.trace() / len(true), "mcc": matthews(confusion),
                  "mcc_interval": mcc_interval(confusion)}
    return scores | {"labels": labels, "confusion": confusion.tolist()}


def add_baselines(scores, paths):
    """Add the MCC of each baseline to the scores of its tasks, as NAME_mcc. Baselines are the files
    NAME.json in the folder scores/ beside the scored files; tools/kmers.py writes one."""
    for folder in sorted({os.path.dirname(path) for path in paths}):
        for path in sorted(glob.glob(os.path.join(glob.escape(folder), "scores", "*.json"))):
            name = os.path.splitext(os.path.basename(path))[0]
            try:
                with open(path, encoding="utf-8") as f:
                    baseline = json.load(f)["tasks"]
                for task in scores.keys() & baseline.keys():
                    scores[task][f"{name}_mcc"] = baseline[task]["mcc"]
            except (ValueError, KeyError, TypeError, AttributeError):
                print(f"{path}: not the scores of a baseline: left out")


def with_means(scores, **more):
    """-> what scores.json holds"""
    result = {"tasks": scores}
    keys = {key for s in scores.values() for key in s if key == "mcc" or key.endswith("_mcc")}
    for key in ["accuracy", "mcc", *sorted(keys - {"mcc"})]:
        values = [s[key] for s in scores.values() if s.get(key) is not None]
        result[f"mean_{key}"] = sum(values) / len(values) if values else None
    return result | more


HEADS = {"n": "n", "accuracy": "acc.", "mcc": "MCC", "mcc_interval": "95% interval",
         "exact_match": "exact", "majority": "major.", "kmer_mcc": "6-mers",
         "zero_shot_mcc": "before"}


def table(result):
    """What scores.json holds -> a table as text, of what HEADS names and of all baselines"""
    # a row per task, and the means; a column per key that a task has
    rows = {name + ("" if s.get("tuned", True) else " *"): s
            for name, s in result["tasks"].items()}
    scored = {key for s in rows.values() for key in s if s[key] is not None}
    keys = [key for key in HEADS if key in scored]
    keys += sorted(key for key in scored if key.endswith("_mcc") and key not in HEADS)
    rows["mean"] = {key: result.get(f"mean_{key}") for key in keys}

    def cell(key, value):
        if value is None:
            return ""
        if key == "mcc_interval":
            return "{:.3f} {:.3f}".format(*value)
        return f"{value:,}" if key == "n" else f"{value:.3f}"

    # each column is as wide as its widest cell
    width = max(map(len, rows))
    lines = [name.ljust(width) for name in ("task", *rows)]
    for key in keys:
        column = [HEADS.get(key, key)] + [cell(key, s.get(key)) for s in rows.values()]
        width = max(map(len, column))
        lines = [f"{line}  {text:>{width}}" for line, text in zip(lines, column)]
    if any(not s.get("tuned", True) for s in rows.values()):
        lines.append("* not tuned on")
    return "\n".join(lines)
