"""
Tasks: from tables of labelled DNA to instructions, and from instructions to the ids of a prompt.

A task is rows of (sequence, label). Each becomes an Alpaca record, a dict with "instruction",
"input", "output", and for the score table "task" and "choices". prepare.py writes them, instruct.py
tunes on them, and sample.py asks in the same words.
"""
import glob
import os
import re
import zlib
from collections import defaultdict

import numpy as np
from tqdm import tqdm

from config import require
from dna.read import (IUPAC, SHORTEST, check_labels, find_tables, read_alpaca, read_table,
                      read_task_json, reverse_complement)

# ----------------------------------------------------------------------------------------------
# Tables to records

# GUE's tasks by their folders, parent/folder: what is asked, a word per label, and whether both
# strands have the same answer; {} is the folder. The words are the DNAHLM paper's. Those of the
# splice sites are in the order of GUE's own ids (the bases at the sites show it), which the paper
# mixed up; the virus variants are in the order of the DNABERT-2 paper.
PROMOTER = ["Non-promoter", "promoter"]
SPLICE = ["Acceptor Sites", "Donor Sites", "Non-Splice Sites"]
FACTOR = ["Background Sequences", "Binding Sites"]
VARIANTS = ["Alpha", "Beta", "Delta", "Eta", "Gamma", "Iota", "Kappa", "Lambda", "Zeta"]
GUE = [
    (".*/prom_core_(all|notata|tata)", "core promoter detection", PROMOTER, False),
    (".*/prom_300_(all|notata|tata)", "promoter detection", PROMOTER, False),
    ("splice/reconstructed", "splice site detection", SPLICE, False),
    ("mouse/[0-4]", "mouse transcription factor {} binding site detection", FACTOR, True),
    ("tf/[0-4]", "human transcription factor {} binding site detection", FACTOR, True),
    ("EMP/(H3|H3K14ac|H3K36me3|H3K4me[123]|H3K79me3|H3K9ac|H4|H4ac)",
     "{} histone mark detection", ["No Mark", "Mark"], True),
    ("virus/covid", "virus variant detection", VARIANTS, False),
]
# Prompt templates. Training rows have any of them, scored rows the first, which is the paper's.
TEMPLATES = [
    "Determine {what} of following dna sequence, "
    "The result will be one of the following: {choices}.",
    "Classify this DNA sequence by {what}. Answer with one of: {choices}.",
    "What does {what} say of the sequence below? The possible answers are {choices}.",
    "Here is some DNA. Do {what}, and choose from {choices}.",
]
# A wording that no training row has; bench/few_shot.py --reworded scores with it.
HELD_OUT_TEMPLATE = "I need {what} for a piece of DNA; tell me which it is: {choices}."


def describe(path, file, labels):
    """What a task asks, by its task.json, by GUE's names of folders, or else by its own name
    -> (name, what is asked, {label: word}, whether both strands have the same answer)"""
    parent, leaf = os.path.abspath(path).split(os.sep)[-2:]
    name = f"{parent}_{leaf}" if leaf.isdigit() or parent in ("EMP", "splice", "virus") else leaf
    as_is = {label: label for label in labels}
    if os.path.exists(file):
        asks, words, either_strand = read_task_json(file)
        return name, asks, words or as_is, either_strand
    for pattern, asks, words, either_strand in GUE:
        if re.fullmatch(pattern, f"{parent}/{leaf}"):
            words = {str(i): word for i, word in enumerate(words)}
            return name, asks.format(leaf), words, either_strand
    return name, name.replace("_", " "), as_is, False


def read_splits(path, tables, seed):
    """-> {split: rows of read_table()}. A tenth of a table by itself, drawn by `seed`, is dev."""
    splits = {split: read_table(tables[split]) for split in ("all", "train", "dev", "test")
              if split in tables}
    if rows := splits.pop("all", None):
        require(len(rows) >= 20, f"{path}: {len(rows)} rows are too few to hold some out: give 20")
        order = np.random.default_rng(seed).permutation(len(rows))
        splits = {"train": [rows[i] for i in sorted(order[len(rows) // 10:])],
                  "dev": [rows[i] for i in sorted(order[:len(rows) // 10])]}
    check_labels(splits)
    return splits


def read_task(path, tables, seed):
    """A task of find_tables() -> {file name: list of Alpaca records}. The templates of training
    rows are drawn by `seed`."""
    # what is asked
    splits = read_splits(path, tables, seed)
    labels = {label: where for rows in splits.values() for _, label, where in rows}
    file = f"{path}.task.json" if "all" in tables else f"{path}/task.json"
    name, asks, words, either_strand = describe(path, file, sorted(labels))
    for label, where in labels.items():
        require(label in words, f"{where}: the label {label!r} is none of {', '.join(words)}: "
                f"name all labels in {file}")
    print(f"{name}: {asks}; " + ", ".join(f"{label} = {word}" for label, word in words.items())
          + "; " + ", ".join(f"{len(rows):,} {split}" for split, rows in splits.items()))

    # its records
    choices = list(words.values())
    prompts = [text.format(what=asks, choices=", ".join(choices)) for text in TEMPLATES]
    about = {"task": name, "choices": choices} | ({"either_strand": True} if either_strand else {})
    rng = np.random.default_rng((seed, zlib.crc32(name.encode())))
    files = {}
    for split, rows in splits.items():
        drawn = rng.integers(len(prompts), size=len(rows)) if split == "train" else [0] * len(rows)
        files[f"{name}.{split}.json"] = [
            {"instruction": prompts[i], "input": sequence, "output": words[label]} | about
            for i, (sequence, label, _) in zip(drawn, rows)]
    return files


# ----------------------------------------------------------------------------------------------
# Training rows must not give scored rows away

def is_scored(name):
    """Whether a file's rows are scored, never tuned on: x.dev.json, x.test.json, test.json, ..."""
    return re.search(r"(^|\.)(dev|val|valid|test)\.", name) is not None


OVERLAP = 20        # bases; a shorter sequence occurs in others by chance


def contained(short, long):
    """Lists of DNA -> (i, j), ...: short[i] occurs in long[j]. The first bases of each short one
    are its anchor; those at each position of the long ones are looked up among the anchors."""
    anchors = {}
    for i, sequence in enumerate(short):
        anchors.setdefault(sequence[:OVERLAP], []).append(i)
    for j, text in enumerate(tqdm(long, desc="looking for overlaps", disable=None)):
        for at in range(len(text) - OVERLAP + 1):
            for i in anchors.get(text[at:at + OVERLAP], ()):
                if text.startswith(short[i], at):
                    yield i, j


def overlapping(train, scored):
    """Lists of DNA, each of 20 bases or more -> indices of the training sequences that contain a
    scored one or lie inside one, on either strand"""
    scored = scored + [reverse_complement(s) for s in scored]
    return {i for i, _ in contained(train, scored)} | {j for _, j in contained(scored, train)}


def find_leaks(train, scored):
    """Lists of Alpaca records -> indices of the training records that ask what a scored one asks:
    the same text, or DNA that overlaps"""
    def question(r):        # DNA too short to search for is compared as a whole
        if not is_dna(r["input"]):
            return r["instruction"], r["input"]
        return r.get("task"), min(r["input"], reverse_complement(r["input"]))

    def sequences(r):
        return re.findall(f"[{IUPAC}]{{{OVERLAP},}}", f"{r['instruction']}\n{r['input']}".upper())

    asked = {question(r) for r in scored}
    owners = [(i, s) for i, r in enumerate(train) for s in sequences(r)]
    found = overlapping([s for _, s in owners], [s for r in scored for s in sequences(r)])
    return {owners[i][0] for i in found} | {i for i, r in enumerate(train) if question(r) in asked}


def without_leaks(train, test):
    """-> the training records whose input, on either strand, is in no test record. A quick check of
    equal texts, as eval_tasks may be files that prepare.py did not see; in its own it has looked for
    overlaps."""
    def question(r):
        return r["input"] or r["instruction"]

    scored = {question(r) for r in test}
    scored |= {reverse_complement(r["input"]) for r in test if r["input"]}
    kept = [r for r in train if question(r) not in scored]
    if len(kept) < len(train):
        print(f"{len(train) - len(kept):,} of {len(train):,} rows are in eval_tasks too: left out")
    return kept


# ----------------------------------------------------------------------------------------------
# Instructions, read back for tuning and scoring

def find_files(patterns):
    """-> paths of the files that the patterns (or plain paths) match, each once"""
    found = []
    for pattern in patterns:
        paths = [pattern] if os.path.exists(pattern) else sorted(glob.glob(pattern))
        if not paths:
            raise FileNotFoundError(f"{pattern}: no such file: run prepare.py first")
        found += paths
    return list({os.path.realpath(path): path for path in found}.values())


def read_examples(patterns):
    """-> the records of Alpaca files, each with its "task", by default the file's name; and of
    folders of tables such as GUE, each task's test rows or, where it has none, its dev rows"""
    records = []
    for path in find_files(patterns):
        if os.path.isfile(path):
            require(not re.search(r"\.[ct]sv(\.\w+)?$", path), f"{path}: a table: give its folder")
            task = os.path.basename(path).split(".")[0]
            records += [{"task": task} | r for r in read_alpaca(path)]
            continue
        for folder, tables in find_tables(path).items():
            split = "test" if "test" in tables else "dev"
            require(split in tables, f"{folder}: no test.csv or dev.csv to score")
            (rows,) = read_task(folder, {split: tables[split]}, seed=0).values()
            records += rows
    return records


def by_task(records):
    """-> {task: its records}"""
    tasks = defaultdict(list)
    for r in records:
        tasks[r["task"]].append(r)
    return dict(tasks)


def is_dna(text):
    return re.fullmatch(f"[{IUPAC}]+", text) is not None


def other_strand(records):
    """-> the reverse complements of those records that have the same answer on either strand"""
    return [r | {"input": reverse_complement(r["input"])}
            for r in records if r.get("either_strand")]


# ----------------------------------------------------------------------------------------------
# Prompts and rows

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


def fold(input):
    """DNA of 16 bases or more (on each side 8, the shortest run that is DNA to the tokenizer) is
    written on two lines, broken in its middle. With every split but "none" no token spans lines, so
    what stands in the middle (the site to judge, where transcription starts) begins a token. Other
    text stays as it is."""
    half = len(input) // 2
    is_dna = re.fullmatch(f"[{IUPAC}]{{{2 * SHORTEST},}}", input)
    return f"{input[:half]}\n{input[half:]}" if is_dna else input


def alpaca_prompt(instruction, input=""):
    before, after = alpaca_parts(instruction, bool(input))
    return before + fold(input) + after
