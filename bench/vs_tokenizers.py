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
import os
import time
from collections import Counter

import numpy as np

import config
from bench import in_turn, peak_rss
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


def library_trainer(docs, vocab_size, split="mixed"):
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


def measure(which, files, vocab_size, mb):
    """Train and encode once
    -> (seconds to train, GB at peak, MB/s to encode, hash of the merges and ids)"""
    docs = [doc for path in files for doc in read_documents(path, mb)]

    # train
    start = time.perf_counter()
    trainer = Tokenizer.train if which == "ours" else library_trainer
    tok = trainer(docs, vocab_size)
    seconds, peak = time.perf_counter() - start, peak_rss()

    # encode about 20 MB of it
    sample = docs[::max(1, round(sum(map(len, docs)) / 20e6))]
    start = time.perf_counter()
    if which == "ours":
        ids, file = tok.encode_batch(sample), to_json(tok)
    else:
        ids, file = tok.encode_batch_fast(sample), json.loads(tok.to_str())
    rate = sum(len(doc.encode()) for doc in sample) / (time.perf_counter() - start)

    # what came out
    model = file["model"]
    digest = hashlib.sha256(json.dumps([model["vocab"], model["merges"]]).encode())
    for doc_ids in ids:
        doc_ids = doc_ids if which == "ours" else doc_ids.ids
        digest.update(np.array(doc_ids, dtype=np.uint32).tobytes())
    return seconds, peak / 1e9, rate / 1e6, digest.hexdigest()


def main(argv):
    parser = argparse.ArgumentParser(prog="python -m bench.vs_tokenizers")
    parser.add_argument("files", nargs="+", help="FASTA or text, plain or packed")
    parser.add_argument("--vocab_size", type=int, default=32_000)
    parser.add_argument("--mb", type=float, default=50, help="megabytes of each file")
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args(argv)

    # ours and, where it is installed, the library
    names = ["ours"] + ["tokenizers"] * bool(importlib.util.find_spec("tokenizers"))
    runs = in_turn(measure, names, args.rounds, args.files, args.vocab_size, args.mb)
    median = {name: np.median([run[:3] for run in runs[name]], axis=0) for name in names}

    print(f"vocabulary {args.vocab_size:,}, split mixed, {os.cpu_count()} cores, "
          f"medians of {args.rounds}")
    print(f"{'':12}{'train s':>10}{'peak GB':>10}{'encode MB/s':>13}")
    for name, (seconds, peak, rate) in median.items():
        print(f"{name:12}{seconds:10.1f}{peak:10.2f}{rate:13.2f}")
    if len(names) > 1:
        seconds, peak, rate = median["ours"] / median["tokenizers"]
        print(f"{'ratio':12}{1 / seconds:9.1f}x{peak:10.2f}{rate:12.1f}x")
        same = len({digest for name in names for *_, digest in runs[name]}) == 1
        print(f"merges and ids: {'the same' if same else 'NOT the same'}")


if __name__ == "__main__":
    config.run(main)
