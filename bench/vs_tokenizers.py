"""
Time training and encoding beside the `tokenizers` library, and compare merges and ids.

    pip install tokenizers
    python -m bench.vs_tokenizers genome.fa.gz books.txt --vocab_size=32000
"""
import argparse
import gzip
import hashlib
import importlib.util
import itertools
import json
import lzma
import multiprocessing
import os
import statistics
import sys
import time
from concurrent.futures import ProcessPoolExecutor

import numpy as np

import config
from bpe import END_OF_TEXT, SPLITS, Tokenizer


def read_documents(path, mb):
    """-> the first `mb` megabytes of a file, plain, .gz or .xz, as documents: of FASTA the records,
    in capitals, of other text the paragraphs"""
    opener = gzip.open if path.endswith(".gz") else lzma.open if path.endswith(".xz") else open
    docs, size = [], 0
    with opener(path, "rt", encoding="utf-8") as f:
        first = f.readline()
        fasta = first.startswith(">")
        for between, lines in itertools.groupby(itertools.chain([first], f), lambda line: (
                line.startswith(">") if fasta else not line.strip())):
            if size >= mb * 1e6:
                break
            if not between:
                doc = "".join(lines)
                docs.append("".join(doc.split()).upper() if fasta else doc)
                size += len(docs[-1])
    return docs


def library_trainer(docs, vocab_size, split):
    """-> the tokenizer that the `tokenizers` library learns with our split and our ids"""
    import tokenizers               # to compare with; nothing else here needs it
    pre = tokenizers.pre_tokenizers
    byte_level = pre.ByteLevel(add_prefix_space=False, use_regex=False)
    tok = tokenizers.Tokenizer(tokenizers.models.BPE())
    tok.pre_tokenizer = pre.Sequence([pre.Split(tokenizers.Regex(SPLITS[split]), "isolated"),
                                      byte_level]) if SPLITS[split] else byte_level
    tok.train_from_iterator(docs, tokenizers.trainers.BpeTrainer(
        vocab_size=vocab_size, initial_alphabet=pre.ByteLevel.alphabet(), show_progress=False,
        special_tokens=[END_OF_TEXT]))
    return tok


def measure(which, files, vocab_size, split, mb):
    """Train and encode once, in a process of its own
    -> (seconds to train, GB at peak, MB/s to encode, fingerprint of the merges and ids)"""
    import resource
    docs = [doc for path in files for doc in read_documents(path, mb)]
    start = time.perf_counter()
    tok = (Tokenizer.train if which == "ours" else library_trainer)(docs, vocab_size, split)
    seconds = time.perf_counter() - start
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    sample = docs[::max(1, round(sum(map(len, docs)) / 20e6))]
    size = sum(len(doc.encode()) for doc in sample)
    start = time.perf_counter()
    if which == "ours":
        ids, file = tok.encode_batch(sample), tok.to_json()
    else:
        ids, file = tok.encode_batch_fast(sample), json.loads(tok.to_str())
    rate = size / 1e6 / (time.perf_counter() - start)
    digest = hashlib.sha256(json.dumps([file["model"]["vocab"], file["model"]["merges"]]).encode())
    for one in ids:
        digest.update(np.array(one if which == "ours" else one.ids, dtype=np.uint32).tobytes())
    return seconds, peak / 1e9, rate, digest.hexdigest()


def bench(files, vocab_size, split, mb, rounds):
    """Ours, and the `tokenizers` library where it is installed, in turns -> lines of a table"""
    names = ["ours"] + ["tokenizers"] * (importlib.util.find_spec("tokenizers") is not None)
    runs = {name: [] for name in names}
    for _ in range(rounds):
        for name in names:
            with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as process:
                runs[name].append(process.submit(measure, name, files, vocab_size, split,
                                                 mb).result())
    median = {name: [statistics.median(column) for column in list(zip(*runs[name]))[:3]]
              for name in names}
    yield f"vocabulary {vocab_size:,}, split {split}, {os.cpu_count()} cores, medians of {rounds}"
    yield f"{'':12}{'train s':>10}{'peak GB':>10}{'encode MB/s':>13}"
    for name, (seconds, peak, rate) in median.items():
        yield f"{name:12}{seconds:10.1f}{peak:10.2f}{rate:13.2f}"
    if len(names) > 1:
        ours, theirs = median.values()
        yield (f"{'ratio':12}{theirs[0] / ours[0]:9.1f}x{ours[1] / theirs[1]:10.2f}"
               f"{ours[2] / theirs[2]:12.1f}x")
        same = len({run[3] for name in names for run in runs[name]}) == 1
        yield f"merges and ids: {'the same' if same else 'NOT the same'}"


def main(argv):
    parser = argparse.ArgumentParser(prog="python -m bench.vs_tokenizers")
    parser.add_argument("files", nargs="+", help="FASTA or text, plain, .gz or .xz")
    parser.add_argument("--vocab_size", type=int, default=32_000)
    parser.add_argument("--split", choices=SPLITS, default="mixed")
    parser.add_argument("--mb", type=float, default=50, help="megabytes of each file")
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args(argv)
    for line in bench(args.files, args.vocab_size, args.split, args.mb, args.rounds):
        print(line)


if __name__ == "__main__":
    config.run(main)
