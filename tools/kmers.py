"""
The 6-mer baseline: what can be told from counts of six bases, without a language model.

    python -m tools.kmers data/toy/tasks
    python -m tools.kmers data/mine/tasks --split=test

A multinomial logistic regression per task, trained on the rows of NAME.train.json and scored on
NAME.dev.json or NAME.test.json. The scores go to scores/kmer.json in the same folder, where
instruct.py finds them for its table.

Shapes: N sequences, F features, K labels.
"""
import argparse
import glob
import os
import warnings
from collections import Counter

import numpy as np
import torch
from torch.nn import functional as F
from tqdm import tqdm

import config
from config import require
from dna.metrics import judge, table, with_means
from dna.read import is_dna
from dna.tasks import by_task, read_examples

WIDTH = 6       # bases
DECAYS = (1e-3, 3e-3, 1e-2, 3e-2)       # weight decays to choose from


# ----------------------------------------------------------------------------------------------
# Features

def kmer_roots(sequences):
    """Square roots of 6-mer counts. The root tames frequent 6-mers, such as AAAAAA in a poly-A tail.
    6-mers with a letter other than A, C, G, T are not counted.

    -> sparse matrix (N, 4096)
    """
    # the windows of all sequences at once; one that reaches into the next sequence has a separator
    text = "".join(sequence + "|" * WIDTH for sequence in sequences)
    # the number of a window in base 4; any other letter makes it negative
    digit = np.full(256, -4 ** WIDTH)
    digit[list(b"ACGT")] = range(4)
    digits = digit[np.frombuffer(text.encode(), dtype=np.uint8)]
    words = np.zeros(len(digits) - WIDTH + 1, dtype=np.int64)
    for i in range(WIDTH):
        words = 4 * words + digits[i:i + len(words)]

    # count the windows of each sequence
    row = np.repeat(np.arange(len(sequences)), [len(s) + WIDTH for s in sequences])[:len(words)]
    row, words = row[words >= 0], words[words >= 0]
    cells, counts = np.unique(row * 4 ** WIDTH + words, return_counts=True)
    per_row = np.bincount(cells // 4 ** WIDTH, minlength=len(sequences))
    with warnings.catch_warnings(action="ignore"):      # torch calls this layout a beta
        return torch.sparse_csr_tensor(np.append(0, per_row.cumsum()), cells % 4 ** WIDTH,
                                       np.sqrt(counts, dtype=np.float32),
                                       (len(sequences), 4 ** WIDTH))


# ----------------------------------------------------------------------------------------------
# Logistic regression

def fit(x, y, n_labels, decay):
    """Multinomial logistic regression, by L-BFGS.

    x: sparse (N, F); y: indices of labels (N,); decay: of the weights
    -> weight (F, K), bias (K,)
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


def score_task(train, test):
    """Fit on the training examples of a task -> its scores on the test examples"""
    labels = sorted({choice for e in test for choice in e["choices"]})
    y = torch.tensor([labels.index(e["output"]) for e in train])

    # choose the weight decay on a tenth of the training examples
    order = np.random.default_rng(0).permutation(len(train))
    held_out, others = order[:len(train) // 10 + 1], order[len(train) // 10 + 1:]
    x = kmer_roots([train[i]["input"] for i in others])
    x_held_out = kmer_roots([train[i]["input"] for i in held_out])
    right = {}
    for decay in DECAYS:
        predicted = predict(x_held_out, *fit(x, y[others], len(labels), decay))
        right[decay] = (predicted == y[held_out]).sum().item()

    # then fit on all of them
    x = kmer_roots([e["input"] for e in train])
    weights = fit(x, y, len(labels), max(right, key=right.get))
    predicted = predict(kmer_roots([e["input"] for e in test]), *weights)
    true = [e["output"] for e in test]
    return {"n": len(test), **judge(true, [labels[i] for i in predicted], labels),
            "majority": max(Counter(true).values()) / len(test)}


# ----------------------------------------------------------------------------------------------
# Tasks

def is_usable(train, test):
    """Whether a task's examples say how to classify DNA. All must have choices and DNA as input, and
    the output of a training example must be a choice of the test examples."""
    choices = {choice for e in test for choice in e.get("choices", [])}
    return len(train) >= 20 and all(is_dna(e["input"]) and e.get("choices")
                                    and e["output"] in choices for e in train + test)


def main(argv):
    # training examples by task, and those to score; where a task has no dev rows, its test rows
    parser = argparse.ArgumentParser(prog="python -m tools.kmers", description="the 6-mer baseline")
    parser.add_argument("folder", help="with NAME.train.json, NAME.dev.json, NAME.test.json")
    parser.add_argument("--split", choices=("dev", "test"), help="default: dev if there is one")
    args = parser.parse_args(argv)
    files = {split: glob.glob(os.path.join(glob.escape(args.folder), f"*.{split}.json"))
             for split in ("train", "dev", "test")}
    require(files["train"], f"{args.folder}: no NAME.train.json: give the tasks folder that "
            "prepare.py wrote")
    train, dev, test = (by_task(read_examples(paths)) for paths in files.values())
    test = {"dev": dev, "test": test}.get(args.split, test | dev)

    # fit and score each
    tasks = [task for task in sorted(train.keys() & test.keys())
             if is_usable(train[task], test[task])]
    require(tasks, f"{args.folder}: no task with rows to score, and 20 training rows or more that "
            "all have DNA as input, and choices")
    scores = {task: score_task(train[task], test[task])
              for task in tqdm(tasks, desc="6-mers", unit=" tasks", disable=None)}
    result = with_means(scores)
    print(table(result))
    path = os.path.join(args.folder, "scores", "kmer.json")
    os.makedirs(os.path.dirname(path), exist_ok=True)
    config.write_json(path, result)
    print(f"\nwrote {path}")


if __name__ == "__main__":
    config.run(main)
