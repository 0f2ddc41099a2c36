"""
What scores.json holds: how well predictions agree with labels, beside the baselines, as a table.

Shapes: N rows, L labels.
"""
import glob
import json
import math
import os

import numpy as np


def confusion_matrix(true, predicted, n_labels):
    """Numbers of labels (N,) -> (L, L) counts: a row per right label, a column per predicted one"""
    confusion = np.zeros((n_labels, n_labels))
    np.add.at(confusion, (true, predicted), 1)
    return confusion


def matthews(confusion):
    """Matthews correlation coefficient of a confusion matrix (true class, predicted class) of any
    number of classes (Gorodkin, 2004, "Comparing two K-category assignments by a K-category
    correlation coefficient"); 0 where all are of one class or predicted as one"""
    confusion = np.asarray(confusion, dtype=float)
    true, predicted, n = confusion.sum(axis=1), confusion.sum(axis=0), confusion.sum()
    spread = math.sqrt(n ** 2 - (true ** 2).sum()) * math.sqrt(n ** 2 - (predicted ** 2).sum())
    return float((confusion.trace() * n - true @ predicted) / spread) if spread else 0.0


def summarize(confusion):
    """-> accuracy, macro F1, mcc and its 95% interval by the bootstrap: 1,000 test sets of the same
    size, drawn with replacement, which amounts to drawing the cells of the confusion matrix"""
    n = int(confusion.sum())
    if not n:
        return {"accuracy": None, "f1": None, "mcc": None, "mcc_interval": None}
    drawn = np.random.default_rng(0).multinomial(n, confusion.ravel() / n, size=1000)
    values = [matthews(d.reshape(confusion.shape)) for d in drawn]
    f1 = 2 * confusion.diagonal() / (confusion.sum(axis=0) + confusion.sum(axis=1)).clip(min=1)
    return {"accuracy": confusion.trace() / n, "f1": f1.mean(), "mcc": matthews(confusion),
            "mcc_interval": np.percentile(values, [2.5, 97.5]).tolist()}


def area_under_curve(p, positive):
    """Area under the ROC curve: how often a positive row has a higher p than a negative one, ties
    counting half, by the ranks (Mann and Whitney, 1947); None where all rows are of one kind"""
    n_positive, n_negative = positive.sum(), (~positive).sum()
    if not n_positive or not n_negative:
        return None
    _, group, size = np.unique(p, return_inverse=True, return_counts=True)
    rank = (size.cumsum() - (size - 1) / 2)[group]         # the mean rank of equal values
    above = rank[positive].sum() - n_positive * (n_positive + 1) / 2
    return float(above / (n_positive * n_negative))


def judge(p, true, labels):
    """Probabilities p (N, L) and the numbers of the right labels (N,) -> what scores.json says of
    them. confusion has a row per right label and a column per label chosen; auc is the mean over
    the labels, each against the others"""
    chosen = p.argmax(axis=1) if len(p) else []
    confusion = confusion_matrix(true, chosen, len(labels))
    areas = [area_under_curve(p[:, k], true == k) for k in range(len(labels))]
    areas = [area for area in areas if area is not None]
    return {**summarize(confusion), "auc": sum(areas) / len(areas) if areas else None,
            "labels": labels, "confusion": confusion.astype(int).tolist()}


def add_baselines(scores, paths):
    """Add the MCC of each baseline to the scores of its tasks, as NAME_mcc: those are the files
    NAME.json in a folder scores/ beside the scored files (tools/kmers.py writes one)."""
    for folder in sorted({os.path.dirname(path) for path in paths if not os.path.isdir(path)}):
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
        known = [s[key] for s in scores.values() if s.get(key) is not None]
        result[f"mean_{key}"] = sum(known) / len(known) if known else None
    return result | more


HEADS = {"n": "n", "accuracy": "acc.", "mcc": "MCC", "mcc_interval": "95% interval",
         "exact_match": "exact", "majority": "major.", "kmer_mcc": "6-mers",
         "classify_mcc": "classif.", "nearest_mcc": "nearest", "zero_shot_mcc": "before"}


def table(result):
    """What scores.json holds -> a table as text, of what HEADS names and of all baselines"""
    rows = {name + ("" if s.get("tuned", True) else " *"): s
            for name, s in result["tasks"].items()}
    known = {key for s in rows.values() for key in s if s[key] is not None}
    keys = [key for key in HEADS if key in known]
    keys += sorted(key for key in known if key.endswith("_mcc") and key not in HEADS)
    rows["mean"] = {key: result.get(f"mean_{key}") for key in keys}

    def cell(key, value):
        if value is None:
            return ""
        if key == "mcc_interval":
            return "{:.3f} {:.3f}".format(*value)
        return f"{value:,}" if key == "n" else f"{value:.3f}"

    # a column per key, as wide as its widest cell
    width = max(map(len, rows))
    lines = [name.ljust(width) for name in ("task", *rows)]
    for key in keys:
        column = [HEADS.get(key, key)] + [cell(key, s.get(key)) for s in rows.values()]
        width = max(map(len, column))
        lines = [f"{line}  {text:>{width}}" for line, text in zip(lines, column)]
    if any(not s.get("tuned", True) for s in rows.values()):
        lines.append("* not tuned on")
    return "\n".join(lines)
