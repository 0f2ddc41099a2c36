"""
The 6-mer baseline: what counts of six bases tell, without a language model.

    python -m tools.kmers data/toy/tasks

It trains a multinomial logistic regression per task on the rows of NAME.train.json, and
scores it on NAME.test.json, or on NAME.dev.json where there is none. The scores go to
scores/kmer.json in the same folder, where instruct.py finds them for its table.

Shapes: N sequences, F features, K labels.
"""
import argparse
import inspect
import warnings
from collections import Counter
from pathlib import Path

import numpy as np
import torch
from torch.nn import functional as F
from tqdm import tqdm

import config
from config import require
from dna.metrics import judge, table, with_means
from dna.read import is_dna
from dna.tasks import by_task, read_examples, scored_beside

WIDTH = 6                               # bases
DECAYS = (1e-3, 3e-3, 1e-2, 3e-2)       # weight decays to choose from


def digits(text, other):
    """-> a number per letter of a text: 0 to 3 for A, C, G, T, and `other` for the rest"""
    digit = np.full(256, other, dtype=np.int16)
    digit[list(b"ACGT")] = range(4)
    return digit[np.frombuffer(text.encode(), dtype=np.uint8)]


def kmer_roots(sequences):
    """-> sparse matrix (N, 4096): square roots of 6-mer counts. The root tames frequent
    6-mers, such as AAAAAA in a poly-A tail. A 6-mer with a letter other than A, C, G, T
    does not count."""
    # another letter than A, C, G, T makes all numbers negative that it is part of
    text = "".join(sequence + "|" * WIDTH for sequence in sequences)
    bases = digits(text, other=-4 ** WIDTH)

    # the 6-mer that begins at each letter, as a number in base 4
    words = np.zeros(len(bases) - WIDTH + 1, dtype=np.int64)
    for i in range(WIDTH):
        words = 4 * words + bases[i:i + len(words)]
    rows = np.repeat(np.arange(len(sequences)), [len(s) + WIDTH for s in sequences])
    cells = np.stack([rows[:len(words)], words])[:, words >= 0]

    # count them in each sequence; torch warns that sparse tensors are a beta
    with warnings.catch_warnings(action="ignore"):
        counts = torch.sparse_coo_tensor(cells, torch.ones(cells.shape[1]),
                                         (len(sequences), 4 ** WIDTH))
        return counts.coalesce().sqrt().to_sparse_csr()


def fit(x, y, n_labels, decay):
    """Multinomial logistic regression, by L-BFGS.

    x: sparse (N, F); y: indices of labels (N,); decay: of the weights
    -> weight (F, K), bias (K,)
    """
    weight, bias = torch.zeros(x.size(1), n_labels), torch.zeros(n_labels)
    optimizer = torch.optim.LBFGS([weight, bias], max_iter=40,
                                  line_search_fn="strong_wolfe")
    xt = x.t().to_sparse_csr()

    def closure():
        # the gradient by hand: autograd is many times slower on a sparse matrix
        logits = x @ weight + bias
        error = (logits.softmax(dim=1) - F.one_hot(y, n_labels)) / len(y)
        weight.grad, bias.grad = xt @ error + 2 * decay * weight, error.sum(dim=0)
        return F.cross_entropy(logits, y) + decay * (weight ** 2).sum()

    optimizer.step(closure)
    return weight, bias


def predict(train, test, labels):
    """Fit on the training examples of a task -> a label for each test example"""
    def encode(examples):
        """-> x (N, 4096), y (N,)"""
        return kmer_roots([e["input"] for e in examples]), \
            torch.tensor([labels.index(e["output"]) for e in examples])

    def choose(x, fitted_on, decay):
        """-> indices of labels (N,) for the rows of x, by a fit on other x and y"""
        weight, bias = fit(*fitted_on, len(labels), decay)
        return (x @ weight + bias).argmax(dim=1)

    # the weight decay is the one that is right most often on a tenth of the training
    # examples, by a fit on the others
    shuffled = [train[i] for i in np.random.default_rng(0).permutation(len(train))]
    tenth = len(train) // 10 + 1
    x, y = encode(shuffled[:tenth])
    others = encode(shuffled[tenth:])
    decay = max(DECAYS, key=lambda decay: (choose(x, others, decay) == y).sum())

    # then fit on all of them
    x, _ = encode(test)
    return [labels[i] for i in choose(x, encode(train), decay)]


# --------------------------------------------------------------------------------------
# What all baselines share

def is_usable(train, test):
    """Whether examples of a task say how to classify DNA: all have DNA as input, and an
    output that is a choice of the test examples; and 20 training rows or more."""
    choices = {choice for e in test for choice in e.get("choices", [])}
    return len(train) >= 20 and all(is_dna(e["input"]) and e["output"] in choices
                                    for e in train + test)


def score_task(train, test, predict):
    """-> the scores of a task's test examples, by predict(train, test, labels)"""
    labels = sorted({choice for e in test for choice in e.get("choices", [])})
    true = [e["output"] for e in test]
    return {"n": len(test), **judge(true, predict(train, test, labels), labels),
            "majority": max(Counter(true).values()) / len(test)}


def baseline(argv, command, name, predict):
    """Score a baseline on each task of a folder, print the table, and write it to
    scores/NAME.json there.

    argv, command: of the command line, such as ["data/toy/tasks"], "tools.kmers"
    predict: as score_task() takes it
    """
    parser = argparse.ArgumentParser(
        prog=f"python -m {command}", formatter_class=argparse.RawTextHelpFormatter,
        description=inspect.getdoc(inspect.getmodule(predict)))
    parser.add_argument("folder", type=Path, help="tasks/, which prepare.py wrote")
    args = parser.parse_args(argv)

    # examples by task, those to train on and those to score
    paths = list(map(str, args.folder.glob("*.train.json")))
    require(paths, f"{args.folder}: no NAME.train.json: give the tasks folder that "
            "prepare.py wrote")
    train, scored = (by_task(read_examples(files))
                     for files in (paths, scored_beside(paths)))
    tasks = [task for task in sorted(train.keys() & scored.keys())
             if is_usable(train[task], scored[task])]
    require(tasks, f"{args.folder}: no task with rows to score, and 20 training rows or "
            "more that all have DNA as input, and choices")

    # fit and score each
    scores = {task: score_task(train[task], scored[task], predict)
              for task in tqdm(tasks, desc=name, unit=" tasks", disable=None)}
    result = with_means(scores)
    print(table(result))
    path = args.folder / f"scores/{name}.json"
    path.parent.mkdir(exist_ok=True)
    config.write_json(path, result)
    print(f"\nwrote {path}")


def main(argv):
    baseline(argv, "tools.kmers", "kmer", predict)


if __name__ == "__main__":
    config.run(main)
