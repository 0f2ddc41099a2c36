"""
How well predictions agree with labels: what scores.json holds, and the table of it.

    scores = {"splice": judge(["a", "d", "a"], ["a", "d", "d"], ["a", "d"])}
    print(table(with_means(scores)))
"""
import glob
import math
import os

import numpy as np

import config
from config import require


def matthews(confusion):
    """-> the Matthews correlation coefficient of a confusion matrix, for any number of
    labels (Gorodkin, 2004, "Comparing two K-category assignments by a K-category
    correlation coefficient"). It is 0 where all rows have one label, or are given one.

    confusion: (K, K), a row per right label and a column per chosen one
    """
    confusion = np.asarray(confusion, dtype=float)
    t, c, n = confusion.sum(axis=1), confusion.sum(axis=0), confusion.sum()
    # both differences are zero or more, but for rounding
    spread = (n ** 2 - t @ t) * (n ** 2 - c @ c)
    if spread <= 0:
        return 0.0
    return float((confusion.trace() * n - t @ c) / math.sqrt(spread))


def mcc_interval(confusion):
    """-> the 95% credible interval of the MCC, from 1,000 draws of what the shares of
    the cells may be (Caelen, 2017, "A Bayesian interpretation of the confusion matrix").

    The prior is one row, spread evenly over the cells (Perks, 1947). So the interval has
    a width even where all rows are right. It is made to contain the MCC itself.
    """
    alpha = confusion.ravel() + 1 / confusion.size
    draws = np.random.default_rng(0).dirichlet(alpha, size=1000)
    values = [matthews(shares.reshape(confusion.shape)) for shares in draws]
    low, high = np.percentile(values, [2.5, 97.5]).tolist()
    mcc = matthews(confusion)
    return [min(low, mcc), max(high, mcc)]


def judge(true, chosen, labels):
    """The right label of each row and the one chosen for it -> the scores of a task.
    "confusion" has a row per right label and a column per chosen one."""
    confusion = np.zeros((len(labels), len(labels)), dtype=int)
    for right, taken in zip(true, chosen):
        confusion[labels.index(right), labels.index(taken)] += 1
    scores = {"accuracy": None, "mcc": None, "mcc_interval": None}
    if true:
        scores = {"accuracy": confusion.trace() / len(true), "mcc": matthews(confusion),
                  "mcc_interval": mcc_interval(confusion)}
    return scores | {"labels": labels, "confusion": confusion.tolist()}


def with_means(scores, **more):
    """{task: its scores} -> what scores.json holds: them, their means, and more"""
    result = {"tasks": scores}
    keys = {key for s in scores.values() for key in s if key.endswith("_mcc")}
    for key in ["accuracy", "mcc", *sorted(keys)]:
        values = [s[key] for s in scores.values() if s.get(key) is not None]
        result[f"mean_{key}"] = sum(values) / len(values) if values else None
    return result | more


def read_scores(path):
    """path: a scores.json or its folder, or the file of a baseline
    -> {task: its scores}, of the tasks that have an MCC"""
    path = os.path.join(path, "scores.json") if os.path.isdir(path) else path
    try:
        tasks = config.read_json(path)["tasks"]
        scores = {name: s for name, s in tasks.items() if s.get("mcc") is not None}
    except (ValueError, KeyError, TypeError, AttributeError):
        raise ValueError(f"{path}: not a scores.json that instruct.py wrote") from None
    require(scores, f"{path}: no task with an MCC in it: score files that have choices")
    return scores


def add_baselines(scores, paths):
    """Add the MCC of each baseline to the scores of its tasks, as NAME_mcc. A baseline
    is a file NAME.json in the folder scores/ beside the scored files. tools/kmers.py
    and tools/cnn.py write one each."""
    for folder in sorted({os.path.dirname(path) for path in paths}):
        pattern = os.path.join(glob.escape(folder), "scores", "*.json")
        for path in sorted(glob.glob(pattern)):
            name = os.path.splitext(os.path.basename(path))[0]
            try:
                baseline = read_scores(path)
            except ValueError as e:
                print(f"{e}: left out")
                continue
            for task in scores.keys() & baseline.keys():
                scores[task][f"{name}_mcc"] = baseline[task]["mcc"]


# --------------------------------------------------------------------------------------
# The table

HEADS = {"n": "n", "accuracy": "acc.", "mcc": "MCC", "mcc_interval": "95% interval",
         "exact_match": "exact", "majority": "major.", "kmer_mcc": "6-mers",
         "cnn_mcc": "CNN", "zero_shot_mcc": "before"}


def table(result):
    """What scores.json holds -> a table as text. It has a row per task and one for the
    means, and a column per key that HEADS names or that a baseline added."""
    tasks = result["tasks"]
    scored = {key for s in tasks.values() for key in s if s[key] is not None}
    keys = [key for key in HEADS if key in scored]
    keys += sorted(key for key in scored - set(HEADS) if key.endswith("_mcc"))

    rows = [["task", *(HEADS.get(key, key) for key in keys)]]
    for name, s in tasks.items():
        star = "" if s.get("tuned", True) else " *"
        rows.append([name + star, *(cell(s.get(key)) for key in keys)])
    rows.append(["mean", *(cell(result.get(f"mean_{key}")) for key in keys)])
    footnote = "\n* not tuned on" if any(row[0].endswith(" *") for row in rows) else ""
    return align(rows) + footnote


def cell(value):
    """1234 -> "1,234", 0.5 -> "0.500", [0.4, 0.6] -> "0.400 0.600", None -> "" """
    if value is None:
        return ""
    if isinstance(value, list):
        return " ".join(map(cell, value))
    return f"{value:,}" if isinstance(value, int) else f"{value:.3f}"


def align(rows):
    """Rows of texts -> a table as text. Names are flush left, and all else right."""
    first, *widths = [max(map(len, column)) for column in zip(*rows)]
    return "\n".join("  ".join([name.ljust(first), *map(str.rjust, texts, widths)])
                     for name, *texts in rows)
