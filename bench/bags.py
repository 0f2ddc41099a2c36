"""
What a way to read DNA lets a linear model see: logistic regression on counts of tokens, beside the
same on counts of 6-mers.

    python -m bench.bags data/laptop/tasks data/laptop/tokenizer.json
    python -m bench.bags data/mine/tasks data/a/tokenizer.json data/b/tokenizer.json --pattern='tf_*'

A 6-mer is counted wherever it stands; a token is cut by what stands beside it, so that the same
motif is now these tokens, now those. Prints the MCC on NAME.dev.json or NAME.test.json, a column
per tokenizer.
"""
import argparse

import numpy as np
from tqdm import tqdm

import config
from bench.kmers import count_roots, find_pairs, is_usable, kmer_roots, score_task
from bpe import Tokenizer
from tasks import by_task, fold, read_tasks


def token_roots(sequences, tok):
    """Square roots of the counts of tokens, of sequences as a prompt holds them
    -> sparse matrix (number of sequences, V)"""
    ids = tok.encode_batch([fold(sequence) for sequence in sequences])
    row = np.repeat(np.arange(len(ids)), [len(i) for i in ids])
    return count_roots(row, np.concatenate(ids).astype(np.int64), (len(ids), len(tok)))


def compare(train, test, tokenizers):
    """-> MCC of a task by its 6-mers, and by the tokens of each tokenizer"""
    scores = [score_task(train, test, kmer_roots)]
    scores += [score_task(train, test, lambda sequences: token_roots(sequences, tok))
               for tok in tokenizers]
    return [s["mcc"] for s in scores]


def main(argv):
    # arguments, tokenizers and records
    parser = argparse.ArgumentParser(prog="python -m bench.bags", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", help="with NAME.train.json, NAME.dev.json, NAME.test.json")
    parser.add_argument("tokenizers", nargs="+", help="tokenizer.json that prepare.py wrote")
    parser.add_argument("--pattern", default="*", help="which names, such as 'tf_*'")
    parser.add_argument("--split", choices=("dev", "test"), help="default: dev if there is one")
    args = parser.parse_args(argv)
    tokenizers = [Tokenizer.load(path) for path in args.tokenizers]
    train, test = (by_task(read_tasks(paths))
                   for paths in find_pairs(args.folder, args.pattern, args.split))

    # a line per task
    mccs = {}
    for task in tqdm(sorted(train.keys() & test.keys()), unit=" tasks", disable=None):
        if is_usable(train[task], test[task]):
            mccs[task] = compare(train[task], test[task], tokenizers)
    if not mccs:
        raise ValueError(f"{args.folder}: no task with 20 training rows or more that all have DNA "
                         "as input, and choices")
    mccs["mean"] = np.mean(list(mccs.values()), axis=0)
    width = max(map(len, mccs))
    print(f"{'MCC':{width}}  6-mers" + "".join(f"  {len(tok):>6,} ids" for tok in tokenizers))
    for task, values in mccs.items():
        print(f"{task:{width}}  {values[0]:6.3f}" + "".join(f"  {v:10.3f}" for v in values[1:]))


if __name__ == "__main__":
    config.run(main)
