"""
Prepare data: files of DNA, English and tasks -> a tokenizer, token bins, instructions.

    python prepare.py                   # the toy world, nothing to download
    python prepare.py --dna=genome.fa --english=books.txt --tasks=GUE --data_dir=data/my
    python prepare.py config/own.toml --tasks=enhancers.csv   # to tune a model in the box

It writes to data_dir:

    tokenizer.json      the vocabulary, learned from a sample of the training text
    train.bin           training documents as ids, <|endoftext|> before and after each
    val_dna.bin         held-out DNA, to report bits per base
    val_english.bin     held-out English, to report bits per byte
    meta.json           what is in the bins, and which tokenizer made them
    tasks/*.json        the tasks as Alpaca instructions, a file per split
    tasks/unseen/       the scored rows, asked in words that no training row has

Input is streamed three times: to find what is held out, to draw the tokenizer's sample,
and to encode.
"""
import glob
import heapq
import json
import os
import re
import shlex
import shutil
from collections import Counter
from collections.abc import Callable
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from itertools import chain, islice
from typing import NamedTuple

import numpy as np
from tqdm import tqdm

import config
from bpe import MODALITIES, Tokenizer
from config import require
from dna import toy
from dna.read import canonical, is_dna, read_alpaca, read_dna, read_paragraphs, stem
from dna.tasks import (OVERLAP, alpaca_prompt, find_leaks, find_tables, is_scored,
                       make_examples)


@dataclass
class PrepareConfig:
    data_dir: str = "data/toy"      # folder to write to
    dna: tuple = ()                 # FASTA files; without any input, the toy world
    english: tuple = ()             # text files, a blank line between paragraphs
    tasks: tuple = ()               # folders with train.csv, tables, or Alpaca files
    tasks_as_text: bool = False     # pretrain on the tasks' training sequences, too
    vocab_size: int = 640           # ids of the tokenizer
    split: str = "mixed"            # how DNA is read: mixed, mixed6, mixed1, none
    tokenizer: str = ""             # use this tokenizer.json instead of training one
    tokenizer_mb: float = 30.0      # megabytes of each modality to train it on
    val_fraction: float = 0.02      # share of each modality that is held out
    seed: int = 1337                # of the tokenizer's sample, wordings, the toy world


# --------------------------------------------------------------------------------------
# Documents, and which of them are held out

class Reader(NamedTuple):
    """How the files of a modality are read."""
    documents: Callable     # (path, counts of what is left out) -> a stream of texts
    canonical: Callable     # text -> the same for all texts that count as equal


# A row for each modality in bpe.MODALITIES, named like its key in PrepareConfig.
READERS = {
    "dna": Reader(read_dna, canonical),         # DNA is equal to its reverse complement
    "english": Reader(read_paragraphs, str),    # any other text, to itself alone
}


class Document(NamedTuple):
    text: str
    modality: str       # its name in MODALITIES
    held_out: bool
    path: str           # the file that it is from


def text_files(cfg):
    """-> the paths of the files of each modality"""
    return [getattr(cfg, modality) for modality in MODALITIES]


def read_texts(cfg, modality, report=False):
    """Stream the files of a modality -> (text, path), ... report: print what is there"""
    for path in getattr(cfg, modality):
        counts = Counter()
        for text in READERS[modality].documents(path, counts):
            yield text, path
            counts["documents"] += 1
            counts[f"{MODALITIES[modality].unit}s"] += len(text.encode())
        if report:
            contents = ", ".join(f"{n:,} {what}" for what, n in counts.items() if n)
            tqdm.write(f"{path}: {contents}")


# Text is held out in stretches of neighbouring documents. Neighbours resemble each
# other, so a document held out by itself would leave much of what it says in the
# training text.
LONGEST_STRETCH, SHORTEST_STRETCH = 20_000, 1000    # bases or characters


def held_out_stretches(cfg, modality):
    """-> (length, n): every n-th stretch of this length is held out

    A small text is cut into shorter stretches. Then more than val_fraction may be held
    out.
    """
    n = round(1 / cfg.val_fraction)
    total = 0
    for text, _ in read_texts(cfg, modality):
        total += len(text)
        if total >= n * LONGEST_STRETCH:
            return LONGEST_STRETCH, n
    require(total >= 2 * SHORTEST_STRETCH,
            f"{', '.join(getattr(cfg, modality))}: {total:,} characters are too few to "
            f"hold some out: give {2 * SHORTEST_STRETCH:,}")
    length = max(SHORTEST_STRETCH, total // n)
    return length, min(n, total // length)


def documents(cfg, modalities=MODALITIES, report=False):
    """Stream the input -> Document, ...

    A document belongs to the stretch in which it begins. It is cut where it is longer
    than a stretch, so that none can step over one. report: print what the files hold
    """
    for modality in modalities:
        if not getattr(cfg, modality):
            continue
        length, n = held_out_stretches(cfg, modality)
        begin = 0
        for text, path in read_texts(cfg, modality, report):
            for i in range(0, len(text), length):
                held_out = (begin + i) // length % n == n // 2
                yield Document(text[i:i + length], modality, held_out, path)
            begin += len(text)


def fingerprint(doc):
    """-> a number that equal documents share"""
    return hash(READERS[doc.modality].canonical(doc.text))


# --------------------------------------------------------------------------------------
# The tokenizer

def reservoir_sample(docs, size, rng):
    """A stream of texts -> a random sample of about `size` characters, in the same order

    Each text gets a random number, and those with the lowest are dropped. So no more
    than the sample is in memory.
    """
    kept, total = [], 0
    for i, doc in enumerate(docs):
        heapq.heappush(kept, (rng.random(), i, doc))
        total += len(doc)
        while total > size and len(kept) > 1:
            total -= len(heapq.heappop(kept)[2])
    return [doc for _, _, doc in sorted(kept, key=lambda item: item[1])]


def train_tokenizer(cfg, held_out, tasks):
    """Train on a sample of the training documents, and of the tasks' training prompts,
    so that the words of every prompt become tokens -> Tokenizer"""
    rng = np.random.default_rng(cfg.seed)
    sample = []
    for modality in MODALITIES:
        docs = (doc.text for doc in documents(cfg, [modality])
                if fingerprint(doc) not in held_out)
        docs = tqdm(docs, desc=f"sampling {modality}", unit=" docs", disable=None)
        sample += reservoir_sample(docs, cfg.tokenizer_mb * 1e6, rng)
    for name in sorted(tasks):
        if not is_scored(name):
            prompts = (alpaca_prompt(example["instruction"]) + example["output"]
                       for example in tasks[name])
            # little of each task: its prompts are few and repeat
            sample += reservoir_sample(prompts, cfg.tokenizer_mb * 1e6 / 100, rng)
    return Tokenizer.train(sample, cfg.vocab_size, cfg.split)


def load_tokenizer(cfg, tasks):
    """-> the Tokenizer of cfg.tokenizer, which must not lose a letter of the tasks"""
    tok = Tokenizer.load(cfg.tokenizer)
    require(tok.eot is not None,
            f"{cfg.tokenizer}: no <|endoftext|>, which separates documents")
    for name, examples in tasks.items():
        letters = set().union(*(example[key] for example in examples
                                for key in ("instruction", "input", "output")))
        letters = "".join(sorted(letters))
        check_lossless(tok, letters, tok.encode(letters), name)
    return tok


def check_lossless(tok, text, ids, path):
    """Not every tokenizer from elsewhere has a token for each byte."""
    if tok.decode_bytes(ids) != text.encode():
        lost = next((c for c in text if tok.decode(tok.encode(c)) != c), text[:20])
        raise ValueError(f"{path}: the tokenizer loses {lost!r}: use another")


# --------------------------------------------------------------------------------------
# Token bins

BINS = ["train.bin", *(f"val_{modality}.bin" for modality in MODALITIES)]
UNITS = [f"{modality.unit}s" for modality in MODALITIES.values()]
SIZES = ["documents", "tokens", *UNITS]


def encode_documents(cfg, tok):
    """Stream the input -> (Document, its ids), ..., encoded 1,000 documents at a time"""
    docs = documents(cfg)
    with tqdm(desc="encoding", unit="B", unit_scale=True, disable=None) as bar:
        while batch := list(islice(docs, 1000)):
            for doc, ids in zip(batch, tok.encode_batch([doc.text for doc in batch])):
                if cfg.tokenizer:
                    check_lossless(tok, doc.text, ids, doc.path)
                yield doc, ids
                bar.update(len(doc.text.encode()))


def write_bins(cfg, tok, held_out, folder):
    """Encode all documents into the bins -> {bin: its sizes}

    held_out: the fingerprints of the held-out documents. Training documents that share
    one are left out
    """
    dtype = token_dtype(tok)
    bins = {name: dict.fromkeys(SIZES, 0) for name in BINS}
    n_repeated = 0
    with ExitStack() as stack:
        files = {name: stack.enter_context(open(f"{folder}/{name}", "wb"))
                 for name in BINS}
        for doc, ids in encode_documents(cfg, tok):
            if not doc.held_out and fingerprint(doc) in held_out:
                n_repeated += 1
                continue
            name = f"val_{doc.modality}.bin" if doc.held_out else "train.bin"
            ids = np.append(ids, tok.eot)
            if not bins[name]["tokens"]:
                ids = np.append(tok.eot, ids)
            files[name].write(ids.astype(dtype).tobytes())
            bins[name]["documents"] += 1
            bins[name]["tokens"] += len(ids)
            bins[name][f"{MODALITIES[doc.modality].unit}s"] += len(doc.text.encode())
    if n_repeated:
        print(f"{n_repeated:,} training documents equal a held-out one: left out")
    require(bins["train.bin"]["tokens"], "nothing is left to train on: give more text")
    return bins


def token_dtype(tok):
    return np.dtype("<u2" if len(tok) <= 2 ** 16 else "<u4")


def write_text(cfg, tasks, folder):
    """Write the tokenizer, and the bins of all modalities with their meta.json."""
    # what is held out
    docs = tqdm(documents(cfg, report=True), desc="reading", unit=" docs", disable=None)
    held_out = {fingerprint(doc) for doc in docs if doc.held_out}

    # the tokenizer
    if cfg.tokenizer:
        tok = load_tokenizer(cfg, tasks)
    else:
        tok = train_tokenizer(cfg, held_out, tasks)
    tok.save(f"{folder}/tokenizer.json")

    # the bins
    bins = write_bins(cfg, tok, held_out, folder)
    config.write_json(f"{folder}/meta.json", {
        "dtype": token_dtype(tok).str, "vocab_size": len(tok), "split": tok.split,
        "tokenizer_sha256": config.file_sha256(f"{folder}/tokenizer.json"),
        "modalities": {name: modality.unit for name, modality in MODALITIES.items()},
        "bins": bins})

    # what there is now
    print(f"\n{'bin':18}" + "".join(f"{size:>14}" for size in SIZES))
    for name, sizes in bins.items():
        print(f"{name:18}" + "".join(f"{sizes[size]:14,}" for size in SIZES))
    if len(tok) < cfg.vocab_size and not cfg.tokenizer:
        print(f"No more pairs to merge: {len(tok):,} ids, not {cfg.vocab_size:,}.")


# --------------------------------------------------------------------------------------
# Tasks

def read_tasks(cfg):
    """-> {file name: list of Alpaca examples}, without the training examples that give
    scored ones away"""
    files = {}
    for path in cfg.tasks:
        for name, examples in read_task_files(path, cfg.seed):
            require(name not in files, f"{path}: a second task named {name}: rename one")
            files[name] = examples

    # which of the training examples give scored ones away?
    train, scored = ([example for name in files if is_scored(name) == of_scored
                      for example in files[name]] for of_scored in (False, True))
    leaks = {id(train[i]) for i in find_leaks(train, scored)}

    # leave them out
    for name, examples in files.items():
        files[name] = [example for example in examples if id(example) not in leaks]
        if n_leaks := len(examples) - len(files[name]):
            print(f"{name}: {n_leaks:,} of {len(examples):,} rows overlap with a scored "
                  "row: left out")
        require(files[name], f"{name}: all rows overlap with scored rows: fix the splits")
    return files


def read_task_files(path, seed):
    """One of cfg.tasks -> (file name, list of Alpaca examples), ..."""
    name = stem(os.path.basename(path), "json|jsonl")
    if name and os.path.isfile(path):
        examples = read_alpaca(path)
        print(f"{name}: {len(examples):,} Alpaca examples")
        return [(f"{name}.json", examples)]
    return [file for task, tables in find_tables(path).items()
            for file in make_examples(task, tables, seed).items()]


def write_tasks(tasks, folder):
    """Write each file's examples as a JSON array, one per line."""
    for name, examples in tasks.items():
        os.makedirs(os.path.dirname(f"{folder}/{name}"), exist_ok=True)
        lines = (json.dumps(example, ensure_ascii=False) for example in examples)
        with open(f"{folder}/{name}", "w", encoding="utf-8") as f:
            f.write("[\n" + ",\n".join(lines) + "\n]\n")


def write_sequences(tasks, path):
    """Write the DNA of the training examples as FASTA, each once, without its label."""
    inputs = dict.fromkeys(example["input"] for name in tasks if not is_scored(name)
                           for example in tasks[name])
    sequences = [text for text in inputs if is_dna(text, OVERLAP)]
    require(sequences, "--tasks_as_text, but no task has DNA to train on")
    with open(path, "w", encoding="utf-8") as f:
        f.writelines(f">{i}\n{sequence}\n" for i, sequence in enumerate(sequences))


# --------------------------------------------------------------------------------------
# The run

def check(cfg):
    """Fail early: on bad arguments, and on a data_dir that prepare.py did not write."""
    # arguments
    require(cfg.data_dir, "data_dir is empty: name a folder to write to")
    require(cfg.val_fraction <= 0.5, f"val_fraction={cfg.val_fraction} is more than 0.5")
    Tokenizer.train([], cfg.vocab_size, cfg.split)  # refuses a bad vocab_size or split
    if cfg.tokenizer:
        Tokenizer.load(cfg.tokenizer)

    # input
    seen, replaced = set(), os.path.realpath(f"{cfg.data_dir}/tasks")
    for path in chain(*text_files(cfg), cfg.tasks):
        require(os.path.exists(path), f"{path}: no such file or folder")
        require(path in cfg.tasks or os.path.isfile(path),
                f"{path}: a folder or a pipe, not a file that can be read three times")
        real = os.path.realpath(path)
        require(real not in seen, f"{path}: given twice")
        require(os.path.commonpath([real, replaced]) != replaced,
                f"{path}: is in {cfg.data_dir}/tasks, which this run would replace: give "
                "another data_dir")
        seen.add(real)

    # data_dir
    require(os.path.isdir(cfg.data_dir) or not os.path.lexists(cfg.data_dir),
            f"{cfg.data_dir}: not a folder: give another data_dir")
    names = set(os.listdir(cfg.data_dir)) if os.path.isdir(cfg.data_dir) else set()
    replaced = sorted({"tokenizer.json", "tasks", *BINS} & names)
    require({"meta.json", STAGED} & names or not replaced,
            f"{cfg.data_dir}: {', '.join(replaced)}, but no meta.json: prepare.py did "
            "not write this: move it, or give another data_dir")


STAGED = "preparing.tmp"    # in data_dir, while prepare.py works


@contextmanager
def staged(data_dir):
    """-> a temporary folder in data_dir. If all goes well, what is in it replaces what
    an earlier run wrote to data_dir. Otherwise data_dir stays as it was."""
    os.makedirs(data_dir, exist_ok=True)
    folder = f"{data_dir}/{STAGED}"
    with config.locked(data_dir):
        # a run that was killed may have left one
        shutil.rmtree(folder, ignore_errors=True)
        os.mkdir(folder)
        try:
            yield folder
        except BaseException:
            shutil.rmtree(folder, ignore_errors=True)
            raise
        # meta.json leaves first and comes last: a folder without it is incomplete
        names = sorted(os.listdir(folder), key="meta.json".__eq__)
        for name in reversed(names):
            if os.path.lexists(f"{data_dir}/{name}"):
                os.rename(f"{data_dir}/{name}", f"{folder}/{name}.old")
        for name in names:
            os.rename(f"{folder}/{name}", f"{data_dir}/{name}")
        shutil.rmtree(folder)


def next_command(cfg, argv, tasks):
    """-> the command that trains or tunes on this data_dir"""
    out_dir = f"out/{os.path.basename(os.path.abspath(cfg.data_dir))}"
    if any(text_files(cfg)):
        return config.next_command("train", argv, data_dir=cfg.data_dir, out_dir=out_dir)

    # without text to pretrain on, a model in the box is tuned or scored
    folder = f"{glob.escape(cfg.data_dir)}/tasks"
    patterns = sorted({re.sub(r".+(\.(train|dev|test)\.json)", r"*\1", name)
                       for name in tasks})
    own = os.path.relpath(os.path.join(os.path.dirname(config.__file__), "own.toml"))
    presets = [arg for arg in argv if not arg.startswith("-")] or [own]
    out_dir = f"{out_dir}-instruct"
    tune = [f"{folder}/{pattern}" for pattern in patterns if not is_scored(pattern)]
    if tune:
        return config.next_command("instruct", presets, tasks=tune, out_dir=out_dir)
    return config.next_command("instruct", [], init_from="models/laptop", epochs=0,
                               eval_tasks=f"{folder}/{patterns[-1]}", out_dir=out_dir)


def main(argv):
    cfg = config.from_command_line(PrepareConfig, "prepare", argv)
    check(cfg)
    if not any([*text_files(cfg), cfg.tasks]):
        print("The toy world: invented DNA, and English that comes with Python.")
        cfg = replace(cfg, **toy.files(os.path.join(cfg.data_dir, "raw"), cfg.seed))
    with staged(cfg.data_dir) as folder:
        tasks = read_tasks(cfg)
        if tasks:
            write_tasks(tasks, f"{folder}/tasks")
        if cfg.tasks_as_text:
            sequences = f"{folder}/tasks/sequences.fa"
            write_sequences(tasks, sequences)
            cfg = replace(cfg, dna=(*cfg.dna, sequences))
        if any(text_files(cfg)):
            write_text(cfg, tasks, folder)
        elif not os.path.exists(f"{cfg.data_dir}/meta.json"):
            # it tells the next run that prepare.py wrote this folder
            config.write_json(f"{folder}/meta.json", {"bins": {}})
    if any(name.endswith(".train.json") for name in tasks):
        folder = shlex.quote(f"{cfg.data_dir}/tasks")
        print("baselines to compare with:", f"python -m tools.kmers {folder}",
              f"python -m tools.cnn {folder}", sep="\n    ")
    print(f"wrote {cfg.data_dir}; next: {next_command(cfg, argv, tasks)}")


if __name__ == "__main__":
    config.run(main)
