"""
From files of DNA, English and tasks to what training reads: a tokenizer, token bins, instructions.

    python prepare.py                                         # the toy world, nothing to download
    python prepare.py --dna=genome.fa.gz --english=books.txt --tasks=GUE --data_dir=data/mine

It writes to data_dir:

    tokenizer.json      the vocabulary, learnt from a sample of the training text
    train.bin           all training documents as ids, each between two <|endoftext|>
    val_dna.bin         held-out DNA, to report bits per base
    val_english.bin     held-out English, to report bits per byte
    meta.json           what is in the bins, and which tokenizer made them
    tasks/*.json        the tasks as Alpaca instructions, a file for each split; .reworded.json are
                        held-out rows asked in words that no training row has

Input is read as a stream, twice: once to draw the tokenizer's sample, once to encode.
"""
import csv
import glob
import gzip
import heapq
import json
import lzma
import os
import re
import shutil
import zlib
from collections import Counter
from dataclasses import dataclass, replace

import numpy as np
from tqdm import tqdm

import config
from bpe import Tokenizer
from config import file_sha256, toy


@dataclass
class PrepareConfig:
    data_dir: str = "data/toy"      # folder to write to
    dna: tuple = ()        # FASTA files; without any input, the toy world
    english: tuple = ()    # UTF-8 text files, a blank line between paragraphs
    tasks: tuple = ()      # folders of train.csv, dev.csv, test.csv; other .csv; Alpaca .json, .jsonl
    describe: tuple = ()   # of tasks: "FOLDER: what is asked; LABEL = word; LABEL = word"
    keep_overlaps: bool = False     # keep training rows that stand inside held-out ones, or around them
    vocab_size: int = 640           # ids of the tokenizer
    split: str = "mixed"            # how DNA is read: mixed, mixed6, mixed1, none
    tokenizer: str = ""             # use this tokenizer.json and do not train one
    tokenizer_mb: float = 30.0      # megabytes of DNA, and of English, to train the tokenizer on
    val_fraction: float = 0.02      # share of DNA, and of English, that is held out
    train_on: str = "both"          # dna, english, both: what train.bin gets; the rest is as ever, to compare
    seed: int = 1337                # of the tokenizer's sample and of the toy world


SEGMENT = 20_000    # bases or characters held out in one stretch
BLOCK = 16_000      # the longest document, and the most of a line read at once: below SEGMENT, so that
                    # no document steps over a stretch that is to be held out
SHORTEST = 8        # bases: what is shorter is no DNA to the tokenizer


# ----------------------------------------------------------------------------------------------
# Reading

def read_lines(path):
    """-> the lines of a UTF-8 file, plain, .gz or .xz by its name, a very long line in parts"""
    opener = gzip.open if path.endswith(".gz") else lzma.open if path.endswith(".xz") else open
    empty = True
    try:
        with opener(path, "rt", encoding="utf-8") as f:
            while line := f.readline(BLOCK):
                empty = empty and not line.strip()
                yield line
    except UnicodeDecodeError as e:
        raise ValueError(f"{path}: not UTF-8 text ({e.reason}): convert it first") from None
    except (EOFError, zlib.error, lzma.LZMAError, gzip.BadGzipFile) as e:
        raise ValueError(f"{path}: damaged or cut short ({e}): get it again") from None
    if empty:
        raise ValueError(f"{path}: an empty file")


IUPAC = "ACGTRYSWKMBDHVN"
COMPLEMENT = str.maketrans(IUPAC, "TGCAYRSWMKVHDBN")


def reverse_complement(sequence):
    """-> the other strand, read in its own direction; IUPAC codes in capitals"""
    return sequence.translate(COMPLEMENT)[::-1]


def clean_dna(text, where):
    """-> `text` as capital letters of DNA, U read as T. Letters that stand for no nucleotide are
    an error, which names `where` they are."""
    text = "".join(text.split()).upper().replace("U", "T").replace("-", "N")
    if wrong := re.search(f"[^{IUPAC}]", text):
        raise ValueError(f"{where}: {wrong[0]!r} is no nucleotide: is this protein? "
                         "Give DNA, in IUPAC letters")
    return text


def read_fasta(path, seen=None):
    """Stream a FASTA file -> (record name, stretch of A, C, G, T), ...

    Lower case is read as upper. A sequence is split wherever there is an N or another ambiguous
    letter, for what stands on the two sides is not neighbouring; and into blocks of 16,000 bases.
    seen: a Counter that is told of the records and bases read and of what was dropped
    """
    seen = Counter() if seen is None else seen
    name, parts, size, bases = None, [], 0, 0

    def stretches():
        text = "".join(parts)
        for run in re.findall("[ACGT]+", text):
            seen["bases" if len(run) >= SHORTEST else "bases in stretches under 8"] += len(run)
            if len(run) >= SHORTEST:
                yield name, run
        n = text.count("N")
        seen["N"] += n
        seen["other ambiguous letters"] += len(re.findall("[^ACGT]", text)) - n

    for number, line in enumerate(read_lines(path), start=1):
        if line.startswith(">"):
            yield from stretches()
            seen["empty records"] += name is not None and bases == 0
            seen["records"] += 1
            name, parts, size, bases = line[1:].strip(), [], 0, 0
        elif line.strip():
            if name is None:
                raise ValueError(f"{path}: line {number}: not FASTA: the first line should be a "
                                 "'>' and the name of a record")
            part = clean_dna(line, f"{path}: line {number}")
            parts.append(part)
            size, bases = size + len(part), bases + len(part)
            if size >= BLOCK:
                yield from stretches()
                parts, size = [], 0
    yield from stretches()
    seen["empty records"] += bases == 0


def read_paragraphs(path, seen=None):
    """Stream a text file -> its paragraphs, which a blank line parts; very long ones in parts"""
    seen = Counter() if seen is None else seen
    parts, size = [], 0

    def paragraph():
        text = "".join(parts).strip()
        if text:
            seen["paragraphs"] += 1
            seen["bytes"] += len(text.encode())
            yield text

    for line in read_lines(path):
        if line.strip():
            parts.append(line)
            size += len(line)
        if size >= BLOCK or not line.strip():
            yield from paragraph()
            parts, size = [], 0
    yield from paragraph()


# ----------------------------------------------------------------------------------------------
# Documents, and which of them are held out

def documents(cfg, report=False):
    """Stream all input -> (modality, held out?, text), ...

    Every so often 20,000 bases or characters in a row are held out, whole documents as they follow
    one another in the input: neighbours overlap and resemble each other, and lines drawn one by one
    would leave their neighbours in the training text. With `report`, print what was read.
    """
    if not 0 < cfg.val_fraction <= 0.5:
        raise ValueError(f"val_fraction={cfg.val_fraction} is not between 0 and 0.5")
    every = round(1 / cfg.val_fraction)
    for modality, paths in (("dna", cfg.dna), ("english", cfg.english)):
        place = 0
        for path in paths:
            seen = Counter()
            stream = (text for _, text in read_fasta(path, seen)) if modality == "dna" \
                else read_paragraphs(path, seen)
            for text in stream:
                yield modality, place // SEGMENT % every == every // 2, text
                place += len(text)
            if report:
                tqdm.write(f"{path}: " + ", ".join(f"{n:,} {what}" for what, n in seen.items() if n))


def draw(docs, size, rng):
    """-> a random sample of the documents in a stream, of about `size` characters together, in the
    order of the stream. Holds no more than that in memory: each gets a random number, and those
    with the lowest have to go."""
    kept, total = [], 0
    for i, doc in enumerate(docs):
        heapq.heappush(kept, (rng.random(), i, doc))
        total += len(doc)
        while total > size and len(kept) > 1:
            total -= len(heapq.heappop(kept)[2])
    return [doc for _, _, doc in sorted(kept, key=lambda item: item[1])]


def train_tokenizer(cfg, folder):
    """Train on a sample of the training documents, and of the prompts of the tasks in `folder`, so
    that the words that every prompt repeats are tokens -> Tokenizer"""
    rng = np.random.default_rng(cfg.seed)
    sample = []
    for modality, part in (("dna", replace(cfg, english=())), ("english", replace(cfg, dna=()))):
        docs = (text for _, held_out, text in documents(part) if not held_out)
        sample += draw(tqdm(docs, desc=f"sampling {modality}", unit=" docs", disable=None),
                       cfg.tokenizer_mb * 1e6, rng)
    for path in sorted(glob.glob(os.path.join(glob.escape(folder), "*.json"))):
        if not path.endswith((".dev.json", ".test.json", ".reworded.json")):
            prompts = (alpaca_prompt(r["instruction"]) + r["output"] for r in read_alpaca(path))
            sample += draw(prompts, cfg.tokenizer_mb * 1e6 / 100, rng)
    return Tokenizer.train(sample, cfg.vocab_size, cfg.split)


# ----------------------------------------------------------------------------------------------
# Token bins

def write_bins(cfg, tok, folder):
    """Encode all documents into the bins -> what meta.json says of each"""
    dtype = np.dtype("<u2" if len(tok) <= 2 ** 16 else "<u4")
    bins = {name: {"documents": 0, "tokens": 0, "bases": 0, "bytes": 0}
            for name in ("train.bin", "val_dna.bin", "val_english.bin")}
    files = {name: open(os.path.join(folder, name), "wb") for name in bins}
    eot = np.array([tok.eot], dtype=dtype)
    bar = tqdm(desc="encoding", unit="B", unit_scale=True, disable=None)

    def write(batch):
        for (name, modality, text), ids in zip(batch, tok.encode_batch([doc[2] for doc in batch])):
            if not bins[name]["tokens"]:
                files[name].write(eot.tobytes())
                bins[name]["tokens"] += 1
            files[name].write(np.append(ids, eot).astype(dtype).tobytes())
            bins[name]["documents"] += 1
            bins[name]["tokens"] += len(ids) + 1
            size = len(text.encode())
            bins[name]["bases" if modality == "dna" else "bytes"] += size
            bar.update(size)

    batch, size = [], 0
    for modality, held_out, text in documents(cfg, report=True):
        if not held_out and cfg.train_on not in (modality, "both"):
            continue
        batch.append((f"val_{modality}.bin" if held_out else "train.bin", modality, text))
        size += len(text)
        if size > 8e6:
            write(batch)
            batch, size = [], 0
    write(batch)
    bar.close()
    for f in files.values():
        f.close()

    for modality, paths in (("dna", cfg.dna), ("english", cfg.english)):
        if paths and not bins[f"val_{modality}.bin"]["tokens"]:
            raise ValueError(f"{', '.join(paths)}: too little to hold any out: give more, or a "
                             f"larger val_fraction than {cfg.val_fraction}")
    if not bins["train.bin"]["documents"]:
        raise ValueError(f"nothing is left to train on, with train_on={cfg.train_on} and "
                         f"val_fraction={cfg.val_fraction}: give more text")
    meta = {"dtype": dtype.str, "vocab_size": len(tok), "split": tok.split,
            "tokenizer_sha256": file_sha256(os.path.join(folder, "tokenizer.json")), "bins": bins}
    config.write_json(os.path.join(folder, "meta.json"), meta)
    return meta


# ----------------------------------------------------------------------------------------------
# The prompt

ALPACA = ("Below is an instruction that describes a task{paired}. Write a response that "
          "appropriately completes the request.\n\n### Instruction:\n{instruction}\n\n")


def alpaca_parts(instruction, has_input):
    """The standard Alpaca prompt template (Taori et al., 2023) -> the texts before and after the
    input. The response is not part of it: its ids are joined on, so the boundary never moves."""
    paired = ", paired with an input that provides further context" if has_input else ""
    before = ALPACA.format(paired=paired, instruction=instruction)
    if has_input:
        return before + "### Input:\n", "\n\n### Response:\n"
    return before, "### Response:\n"


def alpaca_prompt(instruction, input=""):
    before, after = alpaca_parts(instruction, bool(input))
    return before + input + after


def encode_prompts(tok, asked, max_len):
    """asked: list of (instruction, input). A prompt is three lists of ids (before the input, the
    input, after it), so that cutting the end of an input is a slice.
    -> (array of ids per prompt, at most max_len of them, None where not even the instruction fits;
    how many inputs were cut)"""
    # instructions repeat: each is encoded once
    parts = {(instruction, bool(input)): alpaca_parts(instruction, bool(input))
             for instruction, input in asked}
    texts = list(dict.fromkeys(text for pair in parts.values() for text in pair))
    ids_of = dict(zip(texts, tok.encode_batch(texts)))

    prompts, n_cut = [], 0
    for (instruction, input), ids in zip(asked, tok.encode_batch([input for _, input in asked])):
        before, after = (ids_of[text] for text in parts[instruction, bool(input)])
        left = max_len - len(before) - len(after)
        n_cut += 0 <= left < len(ids)
        prompts.append(np.concatenate([before, ids[:left], after]) if left >= 0 else None)
    return prompts, n_cut


def max_prompt_len(tok, choices, block_size):
    """-> the most tokens that a prompt may have: the context less the longest choice and its stop
    token, or less an eighth of the context where there are no choices"""
    longest = max((len(ids) + 1 for ids in tok.encode_batch(choices)), default=block_size // 8)
    if longest > block_size // 2:
        raise ValueError(f"a choice is {longest} tokens long, of block_size={block_size}: shorten it")
    return block_size - longest


# ----------------------------------------------------------------------------------------------
# Tasks

# What a folder of the GUE benchmark asks, by its path: the task in words, and a word for each label
# id. The words are those of the DNAHLM paper; the splice sites are in the order of GUE's own labels
# (the bases at the site say so), which the paper has mixed up. The variants of the virus are in the
# order in which the DNABERT-2 paper names them. {} is the last folder's name.
PROMOTER = ["Non-promoter", "promoter"]
FACTOR = ["Background Sequences", "Binding Sites"]
VARIANTS = ["Alpha", "Beta", "Delta", "Eta", "Gamma", "Iota", "Kappa", "Lambda", "Zeta"]
FAMILIES = [
    (r"core", "core promoter detection", PROMOTER),
    (r"prom", "promoter detection", PROMOTER),
    (r"splice", "splice site detection", ["Acceptor Sites", "Donor Sites", "Non-Splice Sites"]),
    (r"mouse/\d+$", "mouse transcription factor {} binding site detection", FACTOR),
    (r"tf/\d+$", "human transcription factor {} binding site detection", FACTOR),
    (r"tf$", "transcription factor binding site detection", FACTOR),
    (r"EMP/", "{} histone mark detection", ["No Mark", "Mark"]),
    (r"covid", "virus variant detection", VARIANTS),
]
SPLITS = {"train.csv": "train", "dev.csv": "dev", "test.csv": "test"}
# The first is the paper's. Training rows have any of them, held-out rows have the first.
WORDINGS = [
    "Determine {what} of following dna sequence, The result will be one of the following: {choices}.",
    "Classify this DNA sequence by {what}. Answer with one of: {choices}.",
    "What does {what} say of the sequence below? The possible answers are {choices}.",
    "Here is some DNA. Do {what}, and choose from {choices}.",
]
UNSEEN = "I need {what} for a piece of DNA; tell me which it is: {choices}."     # in no training row


def describe_task(folder, labels, described):
    """folder: of the task; labels: that stand in it; described: the config's `describe`
    -> (the task's name, what it asks, {label: word})"""
    parent, leaf = os.path.abspath(folder).split(os.sep)[-2:]
    name = f"{parent}_{leaf}" if leaf.isdigit() or parent in ("EMP", "splice", "virus") else leaf
    for text in described:
        pattern, colon, rest = text.partition(":")
        what, *words = [part.strip() for part in rest.split(";")]
        if not colon or not what or not all("=" in word for word in words):
            raise ValueError(f"describe={text!r}: write FOLDER: what is asked; LABEL = word; ...")
        if pattern.strip() in (leaf, name):
            words = {label.strip(): word.strip() for label, _, word in
                     (word.partition("=") for word in words)}
            return name, what, words or {label: label for label in labels}
    for pattern, what, words in FAMILIES:
        if re.search(pattern, f"{parent}/{leaf}"):
            return name, what.format(leaf), {str(i): word for i, word in enumerate(words)}
    return name, name.replace("_", " "), {label: label for label in labels}


def read_csv_task(path, described=(), seed=0):
    """path: a folder of train.csv, dev.csv, test.csv (any of them), or one .csv, of which a tenth of
    the rows become dev; columns sequence, label -> {split: list of Alpaca records}. The wordings of
    training rows, and that tenth, are drawn by `seed`."""
    splits = {}
    if path.endswith(".csv"):
        rows = list(read_csv(path))
        if len(rows) < 20:
            raise ValueError(f"{path}: {len(rows)} rows are too few to hold some out: give 20 or more")
        order = np.random.default_rng(seed).permutation(len(rows))
        splits = {"train": [rows[i] for i in sorted(order[len(rows) // 10:])],
                  "dev": [rows[i] for i in sorted(order[:len(rows) // 10])]}
    for name, split in SPLITS.items():
        file = os.path.join(path, name)
        if os.path.exists(file):
            splits[split] = list(read_csv(file))
    labels = sorted({row["label"] for rows in splits.values() for row in rows})
    name, what, words = describe_task(path.removesuffix(".csv"), labels, described)
    rng = np.random.default_rng((seed, zlib.crc32(name.encode())))
    records = {}
    for split, rows in splits.items():
        for row in rows:
            if row["label"] not in words:
                raise ValueError(f"{row['where']}: label {row['label']!r} is none of "
                                 f"{', '.join(words)}")
        if split == "train" and len({row["label"] for row in rows}) == 1:
            raise ValueError(f"{rows[0]['where']} and after: all training rows have the label "
                             f"{rows[0]['label']!r}, of which a model learns nothing: give others too")
        wordings = WORDINGS if split == "train" else WORDINGS[:1]
        drawn = rng.integers(len(wordings), size=len(rows))
        records[split] = [{"instruction": word_instruction(wordings[i], what, words.values()),
                           "input": row["sequence"], "output": words[row["label"]], "task": name,
                           "choices": list(words.values())} for i, row in zip(drawn, rows)]
        if split != "train":
            unseen = word_instruction(UNSEEN, what, words.values())
            records[f"{split}.reworded"] = [r | {"instruction": unseen} for r in records[split]]
    return records


def word_instruction(wording, what, words):
    return wording.format(what=what, choices=", ".join(words))


def read_csv(path):
    """-> {"sequence", "label", "where": its file and line} of each row; there is at least one"""
    rows = csv.DictReader(read_lines(path))
    if not {"sequence", "label"} <= set(rows.fieldnames or ()):
        raise ValueError(f"{path}: the first line should name the columns sequence,label, and is "
                         f"{','.join(rows.fieldnames or ())[:80]!r}")
    where = None
    for row in rows:
        where = f"{path}: line {rows.line_num}"
        if not row["sequence"] or not row["label"]:
            raise ValueError(f"{where}: a row without a sequence or without a label")
        yield {"sequence": clean_dna(row["sequence"], where), "label": row["label"].strip(),
               "where": where}
    if not where:
        raise ValueError(f"{path}: no rows below the names of the columns")


def read_alpaca(path):
    """A JSON array of Alpaca records, or one record a line -> list of dicts, checked:
    instruction and output are text, input is text if it is there, the output is one of the choices
    if there are any."""
    text = "".join(read_lines(path))
    records, number = [], 1
    try:
        if text.lstrip().startswith("["):
            records = json.loads(text)
        else:
            for number, line in enumerate(text.splitlines(), start=1):
                if line.strip():
                    records.append(json.loads(line))
    except json.JSONDecodeError as e:
        raise ValueError(f"{path}: line {number + e.lineno - 1}, column {e.colno}: broken JSON "
                         f"({e.msg}): give an array of records, or one record a line") from None
    if not records:
        raise ValueError(f"{path}: no records")
    for number, r in enumerate(records, start=1):
        where = f"{path}: record {number}"
        if not isinstance(r, dict):
            raise ValueError(f"{where}: not an object with instruction, input and output")
        for key in ("instruction", "output"):
            if not isinstance(r.get(key), str) or not r[key].strip():
                raise ValueError(f"{where}: no {key}: an Alpaca record has instruction, input and "
                                 "output, all text")
        if not isinstance(r.setdefault("input", ""), str):
            raise ValueError(f"{where}: its input is not text")
        if not isinstance(r.get("task", ""), str):
            raise ValueError(f"{where}: its task is not text")
        if "choices" in r:
            choices = r["choices"]
            if not isinstance(choices, list) or not all(isinstance(c, str) and c for c in choices) \
                    or len(set(choices)) < len(choices):
                raise ValueError(f"{where}: its choices are not a list of texts, each another")
            if r["output"] not in choices:
                raise ValueError(f"{where}: the output {r['output']!r} is not among its choices")
    return records


def write_tasks(cfg, folder):
    """Turn every task of cfg.tasks into Alpaca JSON in `folder` -> {file name: records}. Training
    rows that overlap with a row of any dev or test split are counted, and left out unless
    cfg.keep_overlaps."""
    os.makedirs(folder, exist_ok=True)
    written = {}

    def write(name, records):
        if name in written:
            raise ValueError(f"two tasks would both be written to {name}: rename one")
        with open(os.path.join(folder, name), "w", encoding="utf-8") as f:
            lines = (json.dumps(r, ensure_ascii=False) for r in records)
            f.write("[\n" + ",\n".join(lines) + "\n]\n")
        written[name] = len(records)

    tables = []         # (name of the file, its records) of the tasks that come as tables
    for path in cfg.tasks:
        if not os.path.exists(path):
            raise FileNotFoundError(f"{path}: no such file or folder")
        if path.endswith((".json", ".jsonl")):
            write(os.path.splitext(os.path.basename(path))[0] + ".json", read_alpaca(path))
            continue
        files = glob.glob(os.path.join(glob.escape(path), "**", "*.csv"), recursive=True)
        found = [path] if path.endswith(".csv") and os.path.basename(path) not in SPLITS else \
            sorted({os.path.dirname(f) for f in [path, *files] if os.path.basename(f) in SPLITS})
        if not found:
            raise ValueError(f"{path}: no task: a task is a folder with train.csv, dev.csv or "
                             "test.csv, a .csv file, or an Alpaca file, .json or .jsonl")
        for task in tqdm(found, desc="tasks", unit=" tasks", disable=None):
            for split, records in read_csv_task(task, cfg.describe, cfg.seed).items():
                tables.append((f"{records[0]['task']}.{split}.json", records))

    train = [r for name, records in tables if name.endswith(".train.json") for r in records]
    held_out = [r for name, records in tables if name.endswith((".dev.json", ".test.json"))
                for r in records]
    found = overlapping([r["input"] for r in train], [r["input"] for r in held_out])
    found = {id(train[i]) for i in found}
    for name, records in tables:
        kept = [r for r in records if id(r) not in found]
        if dropped := len(records) - len(kept):
            print(f"{name}: {dropped:,} of {len(records):,} rows overlap with a held-out row"
                  f"{', and are kept' if cfg.keep_overlaps else ': left out'}")
        if not kept and not cfg.keep_overlaps:
            raise ValueError(f"{name}: all rows overlap with a held-out row: mend the splits, or give "
                             "--keep_overlaps")
        write(name, records if cfg.keep_overlaps else kept)
    return written


OVERLAP = 20        # bases: what is shorter stands in other sequences by mere chance


def overlapping(train, held_out):
    """Which training sequences give a held-out one away: they stand inside it, or around it, or are
    the same, on either strand. train, held_out: lists of DNA -> set of places in `train`"""
    train = {i: s for i, s in enumerate(train) if len(s) >= OVERLAP}
    held_out = [s for s in held_out if len(s) >= OVERLAP]
    if not train or not held_out:
        return set()
    numbers, train = list(train), list(train.values())
    held_out = held_out + [reverse_complement(s) for s in held_out]
    return {numbers[i] for i, _ in find_inside(train, held_out)} | \
        {numbers[i] for _, i in find_inside(held_out, train)}


def find_inside(short, long):
    """Lists of DNA -> (i, j), ...: short[i] stands somewhere inside long[j]. The first bases of each
    short one are looked for in all long ones at once, by number, and what they find is compared."""
    k = min(32, min(map(len, short)))
    first = window_numbers("".join(s[:k] for s in short).encode(), k)[::k]
    order = np.argsort(first, kind="stable")
    first = first[order]
    marked = np.zeros(2 ** 22, dtype=bool)      # says of most windows at once that they are none
    marked[hash_bits(first)] = True
    text = " ".join(long)
    ends = np.cumsum([len(s) + 1 for s in long])
    for start in tqdm(range(0, len(text), 2 ** 20), desc="looking for overlaps", unit=" Mb", disable=None):
        windows = window_numbers(text[start:start + 2 ** 20 + k - 1].encode(), k)
        at = np.flatnonzero(marked[hash_bits(windows)])
        low = np.searchsorted(first, windows[at], "left")
        high = np.searchsorted(first, windows[at], "right")
        for place, a, b in zip((at + start).tolist(), low.tolist(), high.tolist()):
            for i in order[a:b].tolist():
                if text.startswith(short[i], place):
                    yield i, int(np.searchsorted(ends, place, "right"))


def window_numbers(text, k):
    """text: DNA as bytes -> a number for each window of k <= 32 bases in it, two bits a base, so that
    equal windows have equal numbers. (Other letters count as A.)"""
    base = np.zeros(256, dtype=np.uint64)
    base[list(b"ACGT")] = range(4)
    base = base[np.frombuffer(text, dtype=np.uint8)]
    numbers = np.zeros(max(0, len(base) - k + 1), dtype=np.uint64)
    for i in range(k):
        numbers = numbers << np.uint64(2) | base[i:i + len(numbers)]
    return numbers


def hash_bits(numbers):
    """-> 22 bits of each number, well mixed (Knuth's multiplicative hash)"""
    return numbers * np.uint64(0x9E3779B97F4A7C15) >> np.uint64(42)


# ----------------------------------------------------------------------------------------------

def main(argv):
    cfg = config.from_command_line(PrepareConfig, "prepare", argv)
    Tokenizer.train([], cfg.vocab_size, cfg.split)      # a wrong value is refused now, not later
    if cfg.train_on not in ("dna", "english", "both"):
        raise ValueError(f"train_on={cfg.train_on} is not one of dna, english, both")
    part = cfg.data_dir.rstrip("/") + ".part"       # becomes data_dir when all has gone well
    shutil.rmtree(part, ignore_errors=True)
    os.makedirs(part)
    try:
        toy_world = not (cfg.dna or cfg.english or cfg.tasks)
        if toy_world:
            print("The toy world: invented DNA, and English that comes with Python.")
            os.makedirs(os.path.join(part, "raw"))
            raw = os.path.join(part, "raw")
            toy.write(raw, cfg.seed)
            cfg = replace(cfg, dna=(os.path.join(raw, "genome.fa"),),
                          english=(os.path.join(raw, "english.txt"),),
                          tasks=tuple(os.path.join(raw, task) for task in toy.TASK_WINDOWS))
        for path in cfg.dna + cfg.english:
            if not os.path.exists(path):
                raise FileNotFoundError(f"{path}: no such file")
        written = write_tasks(cfg, os.path.join(part, "tasks")) if cfg.tasks else {}
        if cfg.dna or cfg.english:
            tok = Tokenizer.load(cfg.tokenizer) if cfg.tokenizer \
                else train_tokenizer(cfg, os.path.join(part, "tasks"))
            if tok.eot is None:
                raise ValueError(f"{cfg.tokenizer}: has no <|endoftext|>, which documents need "
                                 "between them")
            tok.save(os.path.join(part, "tokenizer.json"))
            meta = write_bins(cfg, tok, part)
        for folder, _, names in os.walk(part):
            target = os.path.join(cfg.data_dir, os.path.relpath(folder, part))
            os.makedirs(target, exist_ok=True)
            for name in names:
                os.replace(os.path.join(folder, name), os.path.join(target, name))
    finally:
        shutil.rmtree(part, ignore_errors=True)

    if cfg.dna or cfg.english:
        print(f"\n{'bin':16}{'documents':>12}{'tokens':>14}{'bases':>14}{'bytes':>14}")
        for name, b in meta["bins"].items():
            print(f"{name:16}{b['documents']:12,}{b['tokens']:14,}{b['bases']:14,}{b['bytes']:14,}")
        if len(tok) < cfg.vocab_size and not cfg.tokenizer:
            print(f"The text has no more pairs to merge: {len(tok):,} ids, not {cfg.vocab_size:,}.")
    for name, n in written.items():
        if not name.endswith(".reworded.json"):
            print(f"tasks/{name}: {n:,} instructions")
    given = "" if toy_world else f" --data_dir={cfg.data_dir}"
    which = "*.train.json" if any(name.endswith(".train.json") for name in written) else "*.json"
    print(f"wrote {cfg.data_dir}; next: python " + (
        f"train.py{given}" if cfg.dna or cfg.english else
        f"instruct.py --tasks='{cfg.data_dir}/tasks/{which}'"))


if __name__ == "__main__":
    config.run(main)
