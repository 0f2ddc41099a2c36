"""
Time and memory of training and encoding, compared with the `tokenizers` library, and
whether the merges and ids are the same.

    pip install tokenizers
    python -m bench.vs_tokenizers genome.fa.gz books.txt --vocab_size=32000
"""
import argparse
import hashlib
import importlib.util
import json
import multiprocessing
import os
import statistics
import sys
import time
from collections import Counter
from concurrent.futures import ProcessPoolExecutor

import numpy as np

import config
from bpe import END_OF_TEXT, PATTERNS, Tokenizer, to_json
from dna.read import read_dna, read_lines, read_paragraphs


def read_documents(path, mb):
    """-> the first `mb` megabytes of a file as documents: the stretches of A, C, G, T in
    FASTA, or the paragraphs of other text"""
    _, first = next(read_lines(path))
    reader = read_dna if first.startswith(">") else read_paragraphs
    docs, size = [], 0
    for doc in reader(path, Counter()):
        if size >= mb * 1e6:
            break
        docs.append(doc)
        size += len(doc)
    return docs


def library_trainer(docs, vocab_size, split):
    """-> the tokenizer that the `tokenizers` library learns with our split and ids"""
    import tokenizers  # needed here only, to compare with
    pre = tokenizers.pre_tokenizers
    steps = [pre.ByteLevel(add_prefix_space=False, use_regex=False)]
    if PATTERNS[split]:
        steps.insert(0, pre.Split(tokenizers.Regex(PATTERNS[split]), "isolated"))
    tok = tokenizers.Tokenizer(tokenizers.models.BPE())
    tok.pre_tokenizer = pre.Sequence(steps)
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=vocab_size, initial_alphabet=pre.ByteLevel.alphabet(),
        special_tokens=[END_OF_TEXT], show_progress=False)
    tok.train_from_iterator(docs, trainer)
    return tok


def measure(which, files, vocab_size, split, mb):
    """Train and encode once, in a separate process
    -> (seconds to train, GB at peak, MB/s to encode, hash of the merges and ids)"""
    import resource
    docs = [doc for path in files for doc in read_documents(path, mb)]

    # Train.
    start = time.perf_counter()
    trainer = Tokenizer.train if which == "ours" else library_trainer
    tok = trainer(docs, vocab_size, split)
    seconds = time.perf_counter() - start
    unit = 1 if sys.platform == "darwin" else 1024
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit

    # Encode about 20 MB of it.
    sample = docs[::max(1, round(sum(map(len, docs)) / 20e6))]
    size = sum(len(doc.encode()) for doc in sample)
    start = time.perf_counter()
    if which == "ours":
        ids, file = tok.encode_batch(sample), to_json(tok)
    else:
        ids, file = tok.encode_batch_fast(sample), json.loads(tok.to_str())
    rate = size / 1e6 / (time.perf_counter() - start)

    # What came out
    model = file["model"]
    digest = hashlib.sha256(json.dumps([model["vocab"], model["merges"]]).encode())
    for doc_ids in ids:
        doc_ids = doc_ids if which == "ours" else doc_ids.ids
        digest.update(np.array(doc_ids, dtype=np.uint32).tobytes())
    return seconds, peak / 1e9, rate, digest.hexdigest()


def bench(files, vocab_size, split, mb, rounds):
    """Ours and, where it is installed, the `tokenizers` library, in interleaved runs
    -> lines of a table"""
    has_library = importlib.util.find_spec("tokenizers") is not None
    names = ["ours", "tokenizers"] if has_library else ["ours"]
    runs = {name: [] for name in names}
    for _ in range(rounds):
        for name in names:
            with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as process:
                run = process.submit(measure, name, files, vocab_size, split, mb)
                runs[name].append(run.result())
    median = {name: [statistics.median(column) for column in list(zip(*runs[name]))[:3]]
              for name in names}

    yield (f"vocabulary {vocab_size:,}, split {split}, {os.cpu_count()} cores, "
           f"medians of {rounds}")
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
    parser.add_argument("--split", choices=PATTERNS, default="mixed")
    parser.add_argument("--mb", type=float, default=50, help="megabytes of each file")
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args(argv)
    for line in bench(args.files, args.vocab_size, args.split, args.mb, args.rounds):
        print(line)


if __name__ == "__main__":
    config.run(main)
