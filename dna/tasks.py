"""
Tasks: from tables of labelled DNA to instructions, and from instructions to prompts.

A task is rows of (sequence, label). Each becomes an Alpaca example, a dict with
"instruction", "input", "output", and for the score table "task" and "choices".
prepare.py writes them, instruct.py tunes on them, and sample.py asks in the same words.
"""
import glob
import json
import os
import re
import zlib
from collections import Counter, defaultdict
from typing import NamedTuple

import numpy as np
from tqdm import tqdm

from bpe import SHORTEST
from config import require
from dna.read import (canonical, clean_label, dna_runs, is_dna, read_alpaca, read_json,
                      read_lines, read_table, reverse_complement, stem)

# --------------------------------------------------------------------------------------
# The prompt: the standard Alpaca template (Taori et al., 2023)

# What stands before and after the input, where there is one, and where there is none.
WITH_INPUT = ("Below is an instruction that describes a task, paired with an input that "
              "provides further context. Write a response that appropriately completes "
              "the request.\n\n### Instruction:\n{instruction}\n\n### Input:\n",
              "\n\n### Response:\n")
WITHOUT_INPUT = ("Below is an instruction that describes a task. Write a response that "
                 "appropriately completes the request.\n\n### Instruction:\n"
                 "{instruction}\n\n",
                 "### Response:\n")


def alpaca_parts(instruction, has_input):
    """-> the texts of a prompt before and after its input. The response is encoded
    separately, so that no token spans prompt and response."""
    before, after = WITH_INPUT if has_input else WITHOUT_INPUT
    return before.format(instruction=instruction), after


def fold(input):
    """-> an input as a prompt has it: DNA on two lines, broken in its middle, if each
    line is long enough to be DNA to the tokenizer

    With every split but "none" no token spans lines. So what stands in the middle (the
    site to judge, where transcription starts) begins a token.
    """
    half = len(input) // 2
    return f"{input[:half]}\n{input[half:]}" if is_dna(input, 2 * SHORTEST) else input


def alpaca_prompt(instruction, input=""):
    before, after = alpaca_parts(instruction, bool(input))
    return before + fold(input) + after


# --------------------------------------------------------------------------------------
# The tables of a task

SPLITS = {"train": "train", "test": "test",
          "dev": "dev", "val": "dev", "valid": "dev", "validation": "dev"}


def is_scored(file):
    """Whether the examples of a file are scored, and never tuned on. The part before
    .json says so: x.dev.json and test.json are, test.train.json is not."""
    return SPLITS.get(file.split(".")[-2]) in ("dev", "test")


def find_tables(path):
    """A table, or a folder with train.csv, dev.csv, test.csv in it or in folders below
    -> {the task's folder or file: {split: table}}; a single table is the split "all" """
    # one table
    if os.path.isfile(path):
        name = stem(path, "csv|tsv")
        require(name, f"{path}: no task: give a .csv, .tsv, .json or .jsonl file, or a "
                "folder")
        require(os.path.basename(name) not in SPLITS,
                f"{path}: a split of a task: give its folder")
        return {name: {"all": path}}

    # a folder
    tasks = {}
    for folder, _, files in sorted(os.walk(path, followlinks=True)):
        tables, others = {}, []
        for file in sorted(files):
            name = stem(file, "csv|tsv")
            if name in SPLITS:
                split = SPLITS[name]
                require(split not in tables, f"{folder}: two tables of {split} rows")
                tables[split] = os.path.join(folder, file)
            elif name:
                others.append(file)
        if tables:
            tasks[folder] = tables
            if others:
                print(f"{folder}: ignored, because neither train, dev nor test: "
                      f"{', '.join(others)}")
    require(tasks, f"{path}: no task: no train.csv, dev.csv or test.csv in or below it")
    return tasks


def hold_out(rows, path, seed):
    """The rows of a single table -> {split: rows}; a tenth, drawn by `seed`, is dev"""
    require(len(rows) >= 20,
            f"{path}: {len(rows)} rows are too few to hold some out: give 20")
    order = np.random.default_rng(seed).permutation(len(rows))
    return {"train": [rows[i] for i in sorted(order[len(rows) // 10:])],
            "dev": [rows[i] for i in sorted(order[:len(rows) // 10])]}


# --------------------------------------------------------------------------------------
# What a task asks

class Task(NamedTuple):
    name: str
    asks: str               # as in "Determine {asks} of following dna sequence"
    questions: list         # the same as people ask it, "Is this a promoter?"
    words: dict             # {label: its word}
    either_strand: bool     # whether both strands have the same answer


# GUE's tasks by their folders, parent/folder: what is looked for, questions as people
# ask them (the last one is held out, see WORDINGS), a word per label, and whether both
# strands have the same answer. {what} is what is looked for. {name} is the folder's name,
# or what NAMES has for its ending, and {species} is what SPECIES has for its parent. The
# words are the DNAHLM paper's. The paper mixed up those of the splice sites; here they
# are in the order of GUE's own ids, as the bases at the sites show. The virus variants
# are in the order of the DNABERT-2 paper.
NAMES = {"all": "", "tata": "TATA ", "notata": "non-TATA "}
SPECIES = {"mouse": "mouse", "tf": "human"}
PROMOTER = ["Non-promoter", "promoter"]
SPLICE = ["Acceptor Sites", "Donor Sites", "Non-Splice Sites"]
FACTOR = ["Background Sequences", "Binding Sites"]
MARK = ["No Mark", "Mark"]
VARIANTS = ["Alpha", "Beta", "Delta", "Eta", "Gamma", "Iota", "Kappa", "Lambda", "Zeta"]
IS_IT = ["Is this a {what}?", "Is there a {what} in this sequence?", "{what} or not?",
         "Could this be a {what}?", "Does this look like a {what}?"]
BINDS = ["Does {species} transcription factor {name} bind here?", *IS_IT[:3],
         "Would {species} transcription factor {name} bind to this sequence?"]
GUE = [
    (".*/prom_core_(all|notata|tata)", "{name}core promoter", IS_IT, PROMOTER, False),
    (".*/prom_300_(all|notata|tata)", "{name}promoter", IS_IT, PROMOTER, False),
    ("splice/reconstructed", "splice site",
     ["Is there a splice donor here?", "Is there a splice acceptor here?",
      "Is this a splice site?", "splice donor, acceptor or neither?",
      "Does this sequence have a splice site in its middle?"], SPLICE, False),
    ("(mouse|tf)/[0-4]", "{species} transcription factor {name} binding site", BINDS,
     FACTOR, True),
    ("EMP/(H3|H3K14ac|H3K36me3|H3K4me[123]|H3K79me3|H3K9ac|H4|H4ac)",
     "{name} histone mark",
     ["Does {name} mark this sequence?", "Is there {name} here?", "{name} or no mark?",
      "Do the histones of this sequence have {name}?", "Is this sequence marked by {name}?"],
     MARK, True),
    ("virus/covid", "virus variant",
     ["Which virus variant is this?", "Which variant of the virus has this sequence?",
      "What variant is it?", "virus variant?", "From which virus variant is this?"],
     VARIANTS, False),
]


def describe(path, file, labels):
    """-> the Task of a folder or table: by its task.json (`file`), by GUE's names of
    folders, or else by its own name"""
    # its name; some folders need their parent's to be clear
    parent, leaf = os.path.abspath(path).split(os.sep)[-2:]
    name = leaf
    if leaf.isdigit() or parent in ("EMP", "splice", "virus"):
        name = f"{parent}_{leaf}"

    # what it asks
    as_is = {label: label for label in labels}
    if os.path.exists(file):
        asks, words, either_strand = read_description(file)
        return Task(name, asks, [], words or as_is, either_strand)
    for pattern, what, questions, words, either_strand in GUE:
        if re.fullmatch(pattern, f"{parent}/{leaf}"):
            names = {"name": NAMES.get(leaf.rpartition("_")[2], leaf),
                     "species": SPECIES.get(parent)}
            what = what.format(**names)
            questions = [question.format(what=what, **names) for question in questions]
            words = {str(i): word for i, word in enumerate(words)}
            return Task(name, f"{what} detection", questions, words, either_strand)
    return Task(name, name.replace("_", " "), [], as_is, False)


def read_description(path):
    """A task.json -> (what is asked, {label: word}, whether both strands have the same
    answer)"""
    task = read_json("".join(line for _, line in read_lines(path)), path)
    try:
        asks, words = task.pop("asks").strip(), task.pop("labels", {})
        words = {clean_label(label.strip(), path): word.strip()
                 for label, word in words.items()}
        either_strand = task.pop("either_strand", False)
        good = asks and len(set(words.values()) - {""}) == len(words) and not task \
            and isinstance(either_strand, bool)
    except (AttributeError, TypeError, KeyError):
        good = False
    require(good, f'{path}: write {{"asks": "enhancer strength", "labels": {{"0": '
            '"weak", "1": "strong"}, "either_strand": false}, with different words')
    return asks, words, either_strand


# --------------------------------------------------------------------------------------
# From tables to examples

# How to ask in general words. A task of GUE has its own questions too. The last wording
# of each list is held out: training rows never have it, and the files in unseen/ have
# nothing else. The first is the DNAHLM paper's, and the usual scored rows have it.
WORDINGS = [
    "Determine {asks} of following dna sequence, "
    "The result will be one of the following: {choices}.",
    "Classify this DNA sequence by {asks}. Answer with one of: {choices}.",
    "What does {asks} say of the sequence below? The possible answers are {choices}.",
    "Here is some DNA. Do {asks}, and choose from {choices}.",
    "Do {asks} on this sequence.",
    "What is the result of {asks}?",
    "{asks}",
    "What does {asks} find here?",
    "Please do {asks} for me.",
]


def wordings(task):
    """-> (instructions to tune on, unseen instructions), which ask what the task asks"""
    general = [wording.format(asks=task.asks, choices=", ".join(task.words.values()))
               for wording in WORDINGS]
    return general[:-1] + task.questions[:-1], general[-1:] + task.questions[-1:]


def make_examples(path, tables, seed):
    """A task of find_tables() -> {file name: list of Alpaca examples}. The wordings of
    training rows are drawn by `seed`, as are the unseen ones."""
    # the rows
    splits = {split: read_table(read_lines(tables[split]), tables[split])
              for split in ("all", "train", "dev", "test") if split in tables}
    if "all" in splits:
        splits = hold_out(splits["all"], path, seed)

    # what is asked
    file, other = f"{path}/task.json", f"{path}.task.json"
    if "all" in tables:
        file, other = other, os.path.join(os.path.dirname(path), "task.json")
    if os.path.exists(other) and not os.path.exists(file):
        print(f"{other}: ignored: name it {file}")
    labels = {row.label for rows in splits.values() for row in rows}
    task = describe(path, file, sorted(labels))
    check_labels(splits, task, file)
    print_task(task, splits, file)

    # the examples
    same_in_all = {"task": task.name, "choices": list(task.words.values())}
    if task.either_strand:
        same_in_all["either_strand"] = True
    rng = np.random.default_rng((seed, zlib.crc32(task.name.encode())))

    def ask(rows, instructions):
        drawn = rng.integers(len(instructions), size=len(rows))
        return [{"instruction": instructions[i], "input": row.sequence,
                 "output": task.words[row.label], **same_in_all}
                for i, row in zip(drawn, rows)]

    known, unseen = wordings(task)
    files = {}
    for split, rows in splits.items():
        name = f"{task.name}.{split}.json"
        files[name] = ask(rows, known if split == "train" else known[:1])
        if split != "train":
            files[f"unseen/{name}"] = ask(rows, unseen)
    return files


def check_labels(splits, task, file):
    """The labels of {split: rows} must be classes: each spelled in one way, one per row,
    with a word in task.json (`file`), none of them only in scored rows, and no measured
    numbers."""
    trained = {row.label for row in splits.get("train", ())}
    all_rows = [row for rows in splits.values() for row in rows]
    spelled = {}
    for _, _, label, where in all_rows:
        same = re.sub(r"(?<=[a-z])[\s_-]+(?=[a-z])", "", label.casefold())
        first = spelled.setdefault(same, label)
        require(label == first,
                f"{where}: the label {label!r} is spelled {first!r} elsewhere")
        require(not re.search("[;|]", label),
                f"{where}: the label {label!r} looks like several: give one per row")
        require(not trained or label in trained,
                f"{where}: no training row has label {label!r}")
        require(label in task.words, f"{where}: the label {label!r} is none of "
                f"{', '.join(task.words)}: name all labels in {file}")
    require(len(trained) != 1,
            f"{where}: all training rows up to here have the same label")

    # many labels are classes if they are names, and there are enough rows of each
    n, n_rows = len(spelled), len(all_rows)
    named = not all(re.fullmatch(r"-?\d+", word) for word in task.words.values())
    require(n <= 50 or named and n_rows >= 10 * n,
            f"{where}: {n} labels in the {n_rows:,} rows up to here: give classes by "
            "name, with ten rows or more for each")


def print_task(task, splits, file):
    # what is asked, and how many rows there are
    n_rows = Counter(row.label for rows in splits.values() for row in rows)
    words = ", ".join(f"{label} = {word} ({n_rows[label]:,} rows)"
                      for label, word in task.words.items())
    sizes = ", ".join(f"{len(rows):,} {split}" for split, rows in splits.items())
    print(f"{task.name}: {task.asks}; {words}; {sizes}")
    if all(label == word and label.isdigit() for label, word in task.words.items()):
        labels = {label: f"class {label}" for label in task.words}
        print(f"{task.name}: to give its labels words, write {file}: "
              + json.dumps({"asks": task.asks, "labels": labels, "either_strand": False}))

    # sequences that occur with different labels
    labelled = {(row.sequence, row.label) for rows in splits.values() for row in rows}
    n_labels = Counter(sequence for sequence, _ in labelled)
    if n := sum(n > 1 for n in n_labels.values()):
        print(f"{task.name}: {n:,} sequences have more than one label")


# --------------------------------------------------------------------------------------
# Training examples must not give scored ones away

OVERLAP = 20        # bases; a shorter sequence occurs in others by chance


def find_leaks(train, scored):
    """Lists of Alpaca examples -> indices of the training examples that give a scored
    one away: they ask the same, or their DNA contains its DNA or lies inside it, on
    either strand"""
    def question(example):      # DNA too short to search for is compared as a whole
        if is_dna(example["input"]):
            return example.get("task"), canonical(example["input"])
        return example["instruction"], example["input"]

    def long_dna(examples):
        texts = [f"{e['instruction']}\n{e['input']}".upper() for e in examples]
        return [(i, dna) for i, text in enumerate(texts)
                for dna in dna_runs(text, OVERLAP)]

    # the same question
    questions = {question(example) for example in scored}
    leaks = {i for i, example in enumerate(train) if question(example) in questions}

    # DNA that overlaps
    of_train, of_scored = long_dna(train), long_dna(scored)
    found = overlapping([dna for _, dna in of_train], [dna for _, dna in of_scored])
    return leaks | {of_train[k][0] for k in found}


def overlapping(train, scored):
    """Lists of DNA, each of 20 letters or more -> indices of the training sequences that
    contain a scored one or lie inside one, on either strand"""
    scored = list({*scored, *map(reverse_complement, scored)})
    return {i for i, _ in contained(train, scored)} \
        | {j for _, j in contained(scored, train)}


def contained(short, long):
    """Lists of DNA -> (i, j), ...: short[i] occurs in long[j]

    Each short sequence has an anchor, the rarest of its pieces of 20 letters. The
    anchors are looked up at each position of the long ones, and only where one is found
    are sequences compared. A piece that all have, such as a primer, would make every
    pair a candidate.
    """
    # the anchors
    count = Counter(piece for sequence in short for _, piece in pieces(sequence))
    anchors = defaultdict(list)
    for i, sequence in enumerate(short):
        at, anchor = min(pieces(sequence), key=lambda piece: count[piece[1]])
        anchors[anchor].append((i, at))

    # where they are
    for j, text in enumerate(tqdm(long, desc="looking for overlaps", disable=None)):
        starts = [start for start in range(len(text) - OVERLAP + 1)
                  if text[start:start + OVERLAP] in anchors]
        for start in starts:
            for i, at in anchors[text[start:start + OVERLAP]]:
                if start >= at and text.startswith(short[i], start - at):
                    yield i, j


def pieces(sequence):
    """-> (position, 20 letters), ... that cover a sequence"""
    last = len(sequence) - OVERLAP
    return [(at, sequence[at:at + OVERLAP]) for at in (*range(0, last, OVERLAP), last)]


# --------------------------------------------------------------------------------------
# Instructions, read back for tuning and scoring

def find_files(patterns):
    """-> paths of the files that the patterns (or plain paths) match, each once"""
    files = []
    for pattern in patterns:
        paths = [pattern] if os.path.exists(pattern) else sorted(glob.glob(pattern))
        if not paths:
            raise FileNotFoundError(f"{pattern}: no such file: run prepare.py first")
        files += paths
    return list({os.path.realpath(path): path for path in files}.values())


def scored_beside(paths):
    """-> the file to score of each NAME.train.json: NAME.test.json beside it, or else
    NAME.dev.json"""
    scored = []
    for path in paths:
        name = path.removesuffix(".train.json")
        beside = [f"{name}.test.json", f"{name}.dev.json"]
        scored += list(filter(os.path.exists, beside))[:1]
    return scored


def read_examples(patterns):
    """-> the examples of Alpaca files, each with a "task", by default the file's name"""
    examples = []
    for path in find_files(patterns):
        require(os.path.isfile(path) and not stem(path, "csv|tsv"),
                f"{path}: no Alpaca file: prepare.py --tasks makes them of tables")
        task = os.path.basename(path).split(".")[0]
        examples += [{"task": task} | example for example in read_alpaca(path)]
    return examples


def by_task(examples):
    """-> {task: its examples}"""
    tasks = defaultdict(list)
    for example in examples:
        tasks[example["task"]].append(example)
    return dict(tasks)


def other_strand(examples):
    """-> the reverse complements of the examples that say either_strand"""
    return [example | {"input": reverse_complement(example["input"])}
            for example in examples if example.get("either_strand")]
