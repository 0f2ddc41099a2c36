"""
Read what users have: text, DNA, task tables, Alpaca records.

Nothing is misread in silence: what cannot be read for certain is a ValueError that names the file,
the line, and what is wrong. prepare.py and tasks.py read all their input here; sample.py, what it
is asked.
"""
import bz2
import csv
import gzip
import io
import json
import lzma
import os
import re
import zlib
from collections import Counter

from config import require

BLOCK = 16_000      # bases or characters; longer sequences and paragraphs come in parts
SHORTEST = 8        # bases; a shorter run is not DNA to the tokenizer


# ----------------------------------------------------------------------------------------------
# Text

UNPACK = {b"\x1f\x8b": gzip.open, b"BZh": bz2.open, b"\xfd7zXZ": lzma.open}     # by first bytes


def read_lines(path, longest=-1):
    """Stream a text file -> (line number, line), ... A line of more than `longest` characters
    comes in parts, all with its number.

    The first bytes, not the name, tell how a file is packed, and UTF-16 from UTF-8. Lines end in
    \\n, \\r\\n or \\r. Refused: damage, bytes that are not text, an empty file.
    """
    number, empty = 1, True
    try:
        with open(path, "rb") as f:
            for magic, unpack in UNPACK.items():
                f = unpack(f) if f.peek(5).startswith(magic) else f
            utf16 = f.peek(2)[:2] in (b"\xff\xfe", b"\xfe\xff")
            f = io.TextIOWrapper(f, "utf-16" if utf16 else "utf-8-sig")
            while line := f.readline(longest):
                require("\0" not in line, f"{path}: line {number}: zero bytes: not a text file")
                empty = empty and line.isspace()
                yield number, line
                number += line.endswith("\n")
    except UnicodeError as e:
        raise ValueError(f"{path}: line {number} or after: not {e.encoding} text ({e.reason}): "
                         "convert it to UTF-8") from None
    except (EOFError, zlib.error, lzma.LZMAError, OSError) as e:
        if isinstance(e, OSError) and e.errno:      # the system's own, such as no permission
            raise
        raise ValueError(f"{path}: damaged or cut short ({e}): get it again") from None
    require(not empty, f"{path}: an empty file")


def stem(path, kinds):
    """stem("x/train.csv.gz", "csv|tsv") -> "x/train"; None for a file of another kind"""
    match = re.fullmatch(rf"(.+)\.({kinds})(\.(gz|bz2|xz))?", path, re.IGNORECASE)
    return match and match[1]


def read_paragraphs(path, counts=None):
    """Stream a text file -> its paragraphs, separated by blank lines; those of 16,000 characters or
    more in parts that end with a line, or in mid-line where lines are longer than 4,000"""
    text = ""
    for _, line in read_lines(path, BLOCK // 4):
        text += line
        if len(text) >= BLOCK or line.isspace():
            yield text.strip()
            text = ""
    yield text.strip()


# ----------------------------------------------------------------------------------------------
# DNA

IUPAC = "ACGTRYSWKMBDHVN"
COMPLEMENT = str.maketrans(IUPAC, "TGCAYRSWMKVHDBN")
LINE_NUMBERS = re.compile(r"(?m)^\s*\d+\s|\s\d+\s*$")   # GenBank's, in front; EMBL's, at the end


def reverse_complement(sequence):
    """-> the other strand, read in its own direction; IUPAC codes in capitals"""
    return sequence.translate(COMPLEMENT)[::-1]


def canonical(sequence):
    """-> the same for a sequence and for its reverse complement: the first of them in the alphabet"""
    return min(sequence, reverse_complement(sequence))


def clean_dna(text, where):
    """-> `text` as DNA in capital IUPAC letters, ambiguous ones included.

    U is read as T, X (a masked base) as N. White space is dropped, and GenBank's line numbers.
    Overlapping k-mers, as in DNABERT's files, are joined: GTGGGG TGGGGA GGGGAG -> GTGGGGAG.
    Refused: gaps, protein, any other character.
    """
    # letters, and k-mers
    words = LINE_NUMBERS.sub(" ", text).upper().replace("U", "T").replace("X", "N").split()
    dna = "".join(words)
    if len(words) > 1 and max(map(len, words)) <= 8:
        overlaps = sum(a[1:] == b[:-1] for a, b in zip(words, words[1:]))
        if overlaps == len(words) - 1:
            dna = words[0][:-1] + "".join(word[-1] for word in words)
        else:
            require(2 * overlaps < len(words) - 1, f"{where}: k-mers, of which some do not overlap")

    # what is not DNA
    if wrong := re.search(f"[^{IUPAC}]", dna):
        hint = "remove the gaps" if wrong[0] in "-." else "is this protein?" \
            if wrong[0] in "EFIJLOPQZ*" else "give DNA in IUPAC letters"
        raise ValueError(f"{where}: {wrong[0]!r} is no nucleotide: {hint}")
    require(len(dna) < 20 or sum(map(dna.count, "ACGTN")) >= len(dna) / 2,
            f"{where}: few letters are A, C, G, T or N: is this protein?")
    return dna


def clean_input(text, where):
    """-> an instruction's input: DNA as clean_dna() returns it, anything else as it is. DNA has
    eight letters or more, all IUPAC, and 90% A, C, G, T, U or N ("Magna Carta" is not DNA)."""
    letters = re.sub(r"[\s.-]", "", LINE_NUMBERS.sub(" ", text)).upper()
    is_dna = re.fullmatch(f"[{IUPAC}UX]{{{SHORTEST},}}", letters) \
        and sum(map(letters.count, "ACGTUN")) >= 0.9 * len(letters)
    return clean_dna(text, where) if is_dna else text


def read_fasta(path, stats=None):
    """Stream a FASTA file -> (record name, stretch of A, C, G, T), ... Each record begins with
    (name, ""), even if no stretch follows.

    A sequence is split at N and other ambiguous letters, because the bases on either side are not
    adjacent, and into blocks of 16,000. Gaps (- and .) are dropped. Lines that begin with ; are
    comments. stats: a Counter for what was read, and for what was dropped
    """
    stats = Counter() if stats is None else stats
    name, text, header = None, "", 0

    def stretches(block):
        runs = re.findall(f"[ACGT]{{{SHORTEST},}}", block)
        n, other = block.count("N"), len(re.findall("[^ACGTN]", block))
        stats["N"] += n
        stats["other ambiguous letters"] += other
        stats["bases in stretches under 8"] += len(block) - n - other - sum(map(len, runs))
        return [(name, run) for run in runs]

    for number, line in read_lines(path, BLOCK):
        # a new record
        if line.startswith(">"):
            yield from stretches(text)
            name, text, header = line[1:].strip(), "", number
            stats["records"] += 1
            yield name, ""
        # its sequence
        elif number > header and not line.isspace() and not line.startswith(";"):
            where = f"{path}: line {number}"
            require(name is not None, f"{where}: not FASTA: a record begins with > and its name")
            letters = line.replace("-", "").replace(".", "")
            stats["gaps"] += len(line) - len(letters)
            text += clean_dna(letters, where)
            while len(text) >= BLOCK:
                yield from stretches(text[:BLOCK])
                text = text[BLOCK:]
    yield from stretches(text)


def read_dna(path, counts):
    """Stream a FASTA file -> its stretches of A, C, G, T; counts: as the stats of read_fasta()"""
    return (stretch for _, stretch in read_fasta(path, counts))


# ----------------------------------------------------------------------------------------------
# Task tables

SPLITS = {"train": "train", "dev": "dev", "val": "dev", "valid": "dev", "test": "test"}
SEQUENCE, LABEL = {"sequence", "seq"}, {"label", "labels", "target"}
MISSING = {"", "NA", "N/A", "n/a", "NaN", "nan", "NULL", "null", "None", "<NA>"}  # as pandas
csv.field_size_limit(2 ** 31 - 1)


def find_tables(path):
    """A table, or a folder with train.csv, dev.csv, test.csv in it or in folders below
    -> {the task's folder or file: {split: table}}; a table by itself has the split "all" """
    # one table
    if os.path.isfile(path):
        name = stem(path, "csv|tsv")
        require(name, f"{path}: no task: give a .csv, .tsv, .json or .jsonl file, or a folder")
        require(os.path.basename(name) not in SPLITS, f"{path}: a split of a task: give its folder")
        return {name: {"all": path}}

    # a folder
    found = {}
    for folder, _, names in sorted(os.walk(path, followlinks=True)):
        for name in sorted(names):
            if split := SPLITS.get(stem(name, "csv|tsv")):
                tables = found.setdefault(folder, {})
                require(split not in tables, f"{folder}: two tables of {split} rows")
                tables[split] = os.path.join(folder, name)
    require(found, f"{path}: no task: no train.csv, dev.csv or test.csv in it or below it")
    return found


def split_table(lines, path):
    """(number, line), ... of a table -> its first line; the names in it, in lower case; and
    (where it is, fields), ... of the rows. Commas, semicolons or tabs separate the fields. A row is
    one line, so that a quote left open cannot swallow the next row."""
    lines = iter(lines)
    _, header = next(lines)
    separator = max(",;\t", key=header.count)
    names = [name.strip().lower() for name in next(csv.reader([header], delimiter=separator))]

    def rows():
        for number, line in lines:
            where = f"{path}: line {number}"
            if line.isspace():
                continue
            try:
                row, = csv.reader([line], delimiter=separator, strict=True, skipinitialspace=True)
            except csv.Error as e:
                raise ValueError(f"{where}: {e}: is a quote left open?") from None
            require(len(row) == len(names), f"{where}: {len(row)} fields, not {len(names)} as above")
            yield where, row

    return header, names, rows()


def read_table(path):
    """A table of sequences and labels -> list of (sequence, label, where it is)

    The first line names the columns, in any case: `sequence` or `seq`, and `label`, `labels` or
    `target`; others are ignored.
    """
    # the columns
    header, names, fields = split_table(read_lines(path), path)
    sequences = [i for i, name in enumerate(names) if name in SEQUENCE]
    labels = [i for i, name in enumerate(names) if name in LABEL]
    require(len(sequences) == len(labels) == 1,
            f"{path}: the first line should name one column sequence and one column label, "
            f"and is {header.strip()[:80]!r}")

    # the rows
    rows = []
    for where, row in fields:
        sequence, label = row[sequences[0]].strip(), row[labels[0]].strip()
        require(sequence not in MISSING, f"{where}: the sequence is missing ({sequence!r})")
        require(label not in MISSING, f"{where}: the label is missing ({label!r})")
        rows.append((clean_dna(sequence, where), clean_label(label, where), where))
    require(rows, f"{path}: no rows below the names of the columns")
    return rows


def clean_label(label, where):
    """-> the label of a class; a whole number is spelled in one way: 1, 1.0 and 01 are 1"""
    if whole := re.fullmatch(r"\+?(-?)0*(\d+)(\.0*)?", label):
        return whole[1] + whole[2]
    require(not re.fullmatch(r"[+-]?(\d+\.?\d*|\.\d+)(e[+-]?\d+)?", label, re.IGNORECASE),
            f"{where}: the label {label} looks like a measured number: give classes")
    return label


def check_labels(splits):
    """splits: {split: rows of read_table()}. The labels must be those of a classification: few,
    each spelled in one way, none of them only in scored rows."""
    trained = {label for _, label, _ in splits.get("train", ())}
    spelled = {}
    for _, label, where in [row for rows in splits.values() for row in rows]:
        same = re.sub(r"(?<=[a-z])[\s_-]+(?=[a-z])", "", label.casefold())
        first = spelled.setdefault(same, label)
        require(label == first, f"{where}: the label {label!r} is spelled {first!r} elsewhere")
        require(not trained or label in trained, f"{where}: no training row has label {label!r}")
        require(len(spelled) <= 50, f"{where}: more than 50 labels: are they measured numbers?")
    require(len(trained) != 1, f"{where}: all training rows up to here have the same label")


def read_task_json(path):
    """A table's task.json -> (what is asked, {label: word}, whether both strands have the same
    answer)"""
    about = read_json("".join(line for _, line in read_lines(path)), path)
    try:
        asks, words = about.pop("asks").strip(), about.pop("labels", {})
        words = {clean_label(label.strip(), path): word.strip() for label, word in words.items()}
        either_strand = about.pop("either_strand", False)
        good = asks and len(set(words.values()) - {""}) == len(words) and not about \
            and isinstance(either_strand, bool)
    except (AttributeError, TypeError, KeyError):
        good = False
    require(good, f'{path}: write {{"asks": "enhancer strength", "labels": {{"0": "weak", '
            '"1": "strong"}, "either_strand": false}, with different words')
    return asks, words, either_strand


# ----------------------------------------------------------------------------------------------
# Alpaca records

def read_json(text, path, number=1):
    """-> the value of a JSON text, which begins at line `number` of a file"""
    try:
        return json.loads(text)
    except json.JSONDecodeError as e:
        raise ValueError(f"{path}: line {number + e.lineno - 1}, column {e.colno}: broken JSON "
                         f"({e.msg}): give an array of records, or one record per line") from None
    except (ValueError, RecursionError) as e:       # a number of 5,000 digits, 3,000 brackets
        raise ValueError(f"{path}: line {number} or after: strange JSON: {e}") from None


def read_alpaca(path):
    """A JSON array of Alpaca records, or one per line -> list of dicts, checked: instruction,
    input ("" if there is none) and output are text; there may be a task, choices (the output is
    one of them) and either_strand. Records with an empty output are left out, and counted."""
    # read and check
    lines = list(read_lines(path))
    text = "".join(line for _, line in lines)
    records = read_json(text, path) if text.lstrip().startswith("[") else \
        [read_json(line.rstrip(), path, number) for number, line in lines if not line.isspace()]
    for number, r in enumerate(records, start=1):
        where = f"{path}: record {number}"
        wrong = problem(r)
        require(not wrong, f"{where}: {wrong}")
        r["input"] = clean_input(r["input"], where)

    # leave out what has no answer
    kept = [r for r in records if r["output"].strip()]
    require(kept, f"{path}: no records with an output")
    if len(kept) < len(records):
        print(f"{path}: {len(records) - len(kept):,} of {len(records):,} records have no output, "
              "and are left out")
    return kept


def problem(r):
    """Turn the numbers of an Alpaca record into text, and null into "".
    -> what is wrong with the record, or None"""
    # text
    if not isinstance(r, dict):
        return "not an object with instruction, input and output"
    for key in ("instruction", "output"):
        if key not in r:
            return f"no {key}: an Alpaca record has instruction, input and output"
    for key in ("instruction", "input", "output"):
        r[key] = as_text(r.get(key))
    for key in ("instruction", "input", "output", "task"):
        text = r.get(key, "")
        if not isinstance(text, str) or re.search("[\ud800-\udfff]", text):
            return f"its {key} is not text"
    if not r["instruction"].strip():
        return "no instruction"
    if not isinstance(r.get("either_strand", False), bool):
        return "its either_strand is not true or false"

    # choices
    choices = r.pop("choices", None)
    if choices is not None:
        if not isinstance(choices, list) or not all(isinstance(as_text(c), str) for c in choices):
            return "its choices are not a list of texts"
        r["choices"] = choices = [as_text(c) for c in choices]
        if len(set(choices) - {""}) < len(choices):
            return "its choices are not all different"
        if r["output"].strip() and r["output"] not in choices:
            return f"the output {r['output']!r} is not among its choices"


def as_text(value):
    """null as "", a number as JSON writes it, anything else as it is"""
    if value is None:
        return ""
    return json.dumps(value) if isinstance(value, (bool, int, float)) else value
