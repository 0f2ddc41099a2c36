"""
The 6-mer baseline: what can be told from counts of six bases, without a language model.

    python -m tools.kmers data/toy/tasks
    python -m tools.kmers data/mine/tasks --pattern='tf_*' --split=test

A multinomial logistic regression per task, trained on the rows of NAME.train.json and scored on
NAME.dev.json or NAME.test.json. The scores go to scores/kmer.json in the same folder, where
instruct.py finds them for its table. A task whose rows have not changed is not fitted again.
"""
import argparse
import fnmatch
import hashlib
import json
import os
import warnings
from collections import Counter

import numpy as np
import torch
from torch.nn import functional as F
from tqdm import tqdm

import config
from dna.metrics import confusion_matrix, summarize, table, with_means
from dna.tasks import by_task, is_dna, read_examples

K = 6
DECAYS = (1e-3, 3e-3, 1e-2, 3e-2)       # weight decays to choose from


# ----------------------------------------------------------------------------------------------
# Features

def kmer_roots(sequences):
    """Square roots of 6-mer counts: they tame the frequent ones, such as AAAAAA in a poly-A tail.
    6-mers with a letter other than A, C, G, T are not counted.

    -> sparse matrix (number of sequences, 4096)
    """
    # all windows at once: those that reach into the next sequence contain a separator
    text = "".join(sequence + "|" * K for sequence in sequences)
    digit = np.full(256, -4 ** K)       # makes the number of any window that contains it negative
    digit[list(b"ACGT")] = range(4)
    digits = digit[np.frombuffer(text.encode(), dtype=np.uint8)]
    words = np.zeros(len(digits) - K + 1, dtype=np.int64)
    for i in range(K):
        words = 4 * words + digits[i:i + len(words)]

    row = np.repeat(np.arange(len(sequences)), [len(s) + K for s in sequences])[:len(words)]
    return count_roots(row[words >= 0], words[words >= 0], (len(sequences), 4 ** K))


def count_roots(row, column, shape):
    """The rows and columns of things, (n,) each -> sparse matrix of that shape, in each cell the
    square root of how many there are"""
    n_rows, n_columns = shape
    cells, counts = np.unique(row * n_columns + column, return_counts=True)
    per_row = np.bincount(cells // n_columns, minlength=n_rows)
    with warnings.catch_warnings(action="ignore"):      # torch calls this layout a beta
        return torch.sparse_csr_tensor(np.append(0, per_row.cumsum()), cells % n_columns,
                                       np.sqrt(counts, dtype=np.float32), shape)


# ----------------------------------------------------------------------------------------------
# Logistic regression

def fit(x, y, n_labels, decay):
    """Multinomial logistic regression, by L-BFGS.

    x: sparse (N, F); y: labels (N,); decay: of the weights -> weight (F, n_labels), bias
    """
    weight, bias = torch.zeros(x.size(1), n_labels), torch.zeros(n_labels)
    optimizer = torch.optim.LBFGS([weight, bias], max_iter=40, line_search_fn="strong_wolfe")
    xt = x.t().to_sparse_csr()

    def closure():
        # the gradient by hand: autograd is many times slower on a sparse matrix
        logits = x @ weight + bias
        error = (logits.softmax(dim=1) - F.one_hot(y, n_labels)) / len(y)
        weight.grad, bias.grad = xt @ error + 2 * decay * weight, error.sum(dim=0)
        return F.cross_entropy(logits, y) + decay * (weight ** 2).sum()

    optimizer.step(closure)
    return weight, bias


def predict(x, weight, bias):
    return (x @ weight + bias).argmax(dim=1)


def score_task(train, test, features=kmer_roots):
    """Fit on the training records of a task -> its scores on the test records. features: a function
    from a list of sequences to a sparse matrix, a row each"""
    labels = sorted({c for r in test for c in r["choices"]})
    y, true = (torch.tensor([labels.index(r["output"]) for r in records])
               for records in (train, test))

    # choose the weight decay on a tenth of the training records
    order = np.random.default_rng(0).permutation(len(train))
    held_out, rest = order[:len(train) // 10 + 1], order[len(train) // 10 + 1:]
    x, x_held_out = (features([train[i]["input"] for i in part]) for part in (rest, held_out))
    right = {}
    for decay in DECAYS:
        predicted = predict(x_held_out, *fit(x, y[rest], len(labels), decay))
        right[decay] = (predicted == y[held_out]).sum().item()

    # then fit on all of them
    x = features([r["input"] for r in train])
    predicted = predict(features([r["input"] for r in test]),
                        *fit(x, y, len(labels), max(right, key=right.get)))
    return score_labels(true.tolist(), predicted.tolist(), len(labels))


def score_labels(true, predicted, n_labels):
    """Numbers of labels -> n, accuracy, mcc, mcc_interval, majority, as instruct.py has them"""
    return {"n": len(true), **summarize(confusion_matrix(true, predicted, n_labels)),
            "majority": max(Counter(true).values()) / len(true)}


# ----------------------------------------------------------------------------------------------
# Tasks and their scores

def is_usable(train, test):
    """Whether the records of a task say how to classify DNA: all have choices and DNA as input,
    and no training record has one that is new"""
    choices = {c for r in test for c in r.get("choices", [])}
    return len(train) >= 20 and all(is_dna(r["input"]) and r.get("choices")
                                    and r["output"] in choices for r in train + test)


def find_pairs(folder, pattern, split):
    """-> paths of the training files, and of the files to score, that have a name in common"""
    names = set(os.listdir(folder))
    train, test = [], []
    for file in fnmatch.filter(sorted(names), f"{pattern}.train.json"):
        scored = [file.replace(".train.json", f".{s}.json") for s in (split or "dev test").split()]
        if found := [name for name in scored if name in names]:
            train.append(os.path.join(folder, file))
            test.append(os.path.join(folder, found[0]))
    if not train:
        raise ValueError(f"{folder}: no {pattern}.train.json with a {split or 'dev or test'} file "
                         "beside it: give the tasks folder that prepare.py wrote")
    return train, test


def read_scores(path):
    """-> what write_scores() wrote, {"tasks": {}} if there is no such file"""
    if not os.path.exists(path):
        return {"tasks": {}}
    with open(path, encoding="utf-8") as f:
        try:
            return {"tasks": {}} | json.load(f)
        except (ValueError, TypeError):
            raise ValueError(f"{path}: damaged: delete it, and it will be written again") from None


def write_scores(path, scores, **more):
    """Write {task: its scores} where instruct.py looks for baselines."""
    os.makedirs(os.path.dirname(path) or ".", exist_ok=True)
    config.write_json(path, with_means(dict(sorted(scores.items())), **more))


def fingerprint(*parts):
    """Lists of records -> a number that changes with what the scores depend on"""
    rows = [[[r["input"], r["output"], r["choices"]] for r in part] for part in parts]
    return hashlib.sha256(json.dumps(rows).encode()).hexdigest()


def main(argv):
    # arguments and records
    parser = argparse.ArgumentParser(prog="python -m tools.kmers", description="the 6-mer baseline")
    parser.add_argument("folder", help="with NAME.train.json, NAME.dev.json, NAME.test.json")
    parser.add_argument("--pattern", default="*", help="which names, such as 'tf_*'")
    parser.add_argument("--split", choices=("dev", "test"), help="default: dev if there is one")
    args = parser.parse_args(argv)
    train, test = (by_task(read_examples(paths))
                   for paths in find_pairs(args.folder, args.pattern, args.split))
    current = {task: fingerprint(train[task], test[task])
               for task in sorted(train.keys() & test.keys()) if is_usable(train[task], test[task])}

    # what was scored before stays, unless its rows have changed
    path = os.path.join(args.folder, "scores", "kmer.json")
    before = read_scores(path)
    scores = {task: s for task, s in before["tasks"].items() if task not in train | test
              or task in current and before["fingerprints"][task] == current[task]}
    prints = {task: before["fingerprints"][task] for task in scores}

    # the rest is fitted, and written task by task
    todo = [task for task in current if task not in scores]
    for task in tqdm(todo, desc="6-mers", unit=" tasks", disable=None):
        scores[task], prints[task] = score_task(train[task], test[task]), current[task]
        write_scores(path, scores, fingerprints=prints)
    if not scores:
        raise ValueError(f"{args.folder}: no task with 20 training rows or more that all have DNA "
                         "as input, and choices")
    print(f"{table(with_means(scores))}\n\nwrote {path}")


if __name__ == "__main__":
    config.run(main)
