"""
Read what users have: text, DNA, tables of sequences, Alpaca examples.

Ambiguous input is never guessed at. It raises a ValueError that names the file, the
line and what is wrong. prepare.py, instruct.py and sample.py read all their input here.
"""
import bz2
import csv
import gzip
import io
import json
import lzma
import re
import zlib
from collections import Counter
from typing import NamedTuple

from bpe import END_OF_TEXT, SHORTEST
from config import require

BLOCK = 16_000      # bases or characters; longer sequences and paragraphs come in parts


# --------------------------------------------------------------------------------------
# Text

# how a file begins: how it is unpacked
UNPACK = {b"\x1f\x8b": gzip.open, b"BZh": bz2.open, b"\xfd7zXZ": lzma.open}


def read_lines(path, longest=-1):
    """Stream a text file -> (line number, line), ... A line of more than `longest`
    characters comes in parts, all with its number.

    The first bytes, not the name, tell how a file is packed, and UTF-16 from UTF-8.
    Lines end in \\n, \\r\\n or \\r. Damage, bytes that are not text and an empty file
    are refused.
    """
    number, empty = 1, True
    try:
        with open(path, "rb") as f:
            for magic, unpack in UNPACK.items():
                f = unpack(f) if f.peek(5).startswith(magic) else f
            require(not f.peek(4).startswith(b"PK\x03\x04"), f"{path}: a zip archive or "
                    "an Excel file: unpack it, or save the table as CSV")
            utf16 = f.peek(2)[:2] in (b"\xff\xfe", b"\xfe\xff")
            f = io.TextIOWrapper(f, "utf-16" if utf16 else "utf-8-sig")
            while line := f.readline(longest):
                require("\0" not in line,
                        f"{path}: line {number}: zero bytes: not a text file")
                empty = empty and line.isspace()
                yield number, line
                number += line.endswith("\n")
    except UnicodeError as e:
        raise ValueError(f"{path}: line {number} or after: not {e.encoding} text "
                         f"({e.reason}): convert it to UTF-8") from None
    except (EOFError, zlib.error, lzma.LZMAError, OSError) as e:
        if isinstance(e, OSError) and e.errno:
            raise       # the system's own, such as no permission
        raise ValueError(f"{path}: damaged or cut short ({e}): get it again") from None
    require(not empty, f"{path}: an empty file")


def stem(path, kinds):
    """stem("x/train.csv.gz", "csv|tsv") -> "x/train"; None for a file of another kind"""
    match = re.fullmatch(rf"(.+)\.({kinds})(\.(gz|bz2|xz))?", path, re.IGNORECASE)
    return match and match[1]


def read_paragraphs(path, counts=None):
    """Stream a text file -> its paragraphs, separated by blank lines or by <|endoftext|>

    A paragraph of 16,000 characters or more comes in parts that end with a line, or
    within a line that is longer than 4,000. Nothing is dropped, so `counts` stays as it
    is.
    """
    text = ""
    for _, line in read_lines(path, BLOCK // 4):
        text += line
        # a part does not end in the middle of <|endoftext|>
        if line.isspace() or len(text) >= BLOCK and "<" not in text[-len(END_OF_TEXT):]:
            yield from split_documents(text)
            text = ""
    yield from split_documents(text)


def split_documents(text):
    return filter(None, map(str.strip, text.split(END_OF_TEXT)))


# --------------------------------------------------------------------------------------
# DNA

IUPAC = "ACGTRYSWKMBDHVN"
COMPLEMENT = str.maketrans(IUPAC, "TGCAYRSWMKVHDBN")


def reverse_complement(sequence):
    """-> the other strand, read in its own direction; IUPAC codes in capitals"""
    return sequence.translate(COMPLEMENT)[::-1]


def canonical(sequence):
    """-> the same for both strands: the one that comes first in the alphabet"""
    return min(sequence, reverse_complement(sequence))


def dna_runs(text, shortest):
    """-> the runs of `shortest` capital IUPAC letters or more in a text"""
    return re.findall(f"[{IUPAC}]{{{shortest},}}", text)


def is_dna(text, shortest=1):
    """Whether a text is nothing but `shortest` capital IUPAC letters or more"""
    return dna_runs(text, shortest) == [text]


def stretches(sequence):
    """-> the stretches of eight bases or more in a sequence. An ambiguous letter ends a
    stretch, because the bases on either side of it are not adjacent."""
    return re.findall(f"[ACGT]{{{SHORTEST},}}", sequence)


def dna_words(text):
    """-> the words of a text in capitals, with U as T and X (a masked base) as N. Line
    numbers, which GenBank has, are left out."""
    words = text.upper().replace("U", "T").replace("X", "N").split()
    return [word for word in words if not word.isdigit()]


def clean_dna(text, where):
    """-> `text` as DNA in capital IUPAC letters, ambiguous ones included

    White space and line numbers are dropped. Overlapping k-mers, as in DNABERT's files,
    are joined: GTGGGG TGGGGA GGGGAG -> GTGGGGAG. Gaps, protein and any other character
    are refused.
    """
    # letters, and k-mers
    words = dna_words(text)
    dna = "".join(words)
    if len(words) > 1 and max(map(len, words)) <= 8:
        overlaps = sum(a[1:] == b[:-1] for a, b in zip(words, words[1:]))
        if overlaps == len(words) - 1:
            dna = words[0][:-1] + "".join(word[-1] for word in words)
        else:
            require(2 * overlaps < len(words) - 1,
                    f"{where}: k-mers, but some of them do not overlap")

    # what is not DNA
    if wrong := re.search(f"[^{IUPAC}]", dna):
        hint = "give DNA in IUPAC letters"
        if wrong[0] in "-.":
            hint = "remove the gaps"
        elif wrong[0] in "EFIJLOPQZ*":
            hint = "is this protein?"
        raise ValueError(f"{where}: {wrong[0]!r} is no nucleotide: {hint}")
    require(len(dna) < 20 or sum(map(dna.count, "ACGTN")) >= len(dna) / 2,
            f"{where}: few letters are A, C, G, T or N: is this protein?")
    return dna


def looks_like_dna(text):
    """Whether a text has eight letters or more, all IUPAC, 90% of them A, C, G, T, U or
    N: "Magna Carta" is not DNA. White space, numbers and gaps do not matter."""
    letters = "".join(dna_words(text)).replace("-", "").replace(".", "")
    enough = sum(map(letters.count, "ACGTN")) >= 0.9 * len(letters)
    return is_dna(letters, SHORTEST) and enough


def clean_input(text, where):
    """-> the input of an example: DNA as clean_dna() returns it, other text as it is"""
    return clean_dna(text, where) if looks_like_dna(text) else text


def read_fasta(lines, path, longest=None, counts=None):
    """Stream the (number, line), ... of a FASTA file -> (name, sequence), ...

    A record of more than `longest` letters comes in parts, all with its name. A record
    without a name is called by its line. Gaps (- and .) are dropped. Lines that begin
    with ; are comments. counts: a Counter, to which records and gaps are added
    """
    counts = Counter() if counts is None else counts
    name, sequence, header = None, "", 0
    for number, line in lines:
        # a new record
        if line.startswith(">"):
            if name is not None:
                yield name, sequence
            name, sequence = " ".join(line[1:].split()) or f"line {number}", ""
            header = number
            counts["records"] += 1
        # its sequence; a part of a long header is none
        elif number > header and not line.isspace() and not line.startswith(";"):
            where = f"{path}: line {number}"
            require(name is not None,
                    f"{where}: not FASTA: a record begins with > and its name")
            letters = line.replace("-", "").replace(".", "")
            counts["gaps"] += len(line) - len(letters)
            sequence += clean_dna(letters, where)
            while longest and len(sequence) >= longest:
                yield name, sequence[:longest]
                sequence = sequence[longest:]
    require(name is not None, f"{path}: no records")
    yield name, sequence


def read_dna(path, counts):
    """Stream a FASTA file -> its stretches, long ones in parts of 16,000 bases. counts:
    a Counter, to which records, N and all that is dropped are added"""
    for _, part in read_fasta(read_lines(path, BLOCK), path, BLOCK, counts):
        kept = stretches(part)
        bases = sum(map(part.count, "ACGT"))
        counts["N"] += part.count("N")
        counts["other ambiguous letters"] += len(part) - bases - part.count("N")
        counts["bases in stretches under 8"] += bases - sum(map(len, kept))
        yield from kept


# --------------------------------------------------------------------------------------
# Tables of sequences

# names of columns, in any case
SEQUENCE = {"sequence", "seq"}
LABEL = {"label", "labels", "target"}
NAME = {"name", "id"}
# what pandas reads as missing
MISSING = {"", "NA", "N/A", "n/a", "NaN", "nan", "NULL", "null", "None", "<NA>"}
csv.field_size_limit(2 ** 31 - 1)


class TableRow(NamedTuple):
    name: str           # from the column `name` or `id`, or else the number of the row
    sequence: str       # IUPAC letters
    label: str          # "" where labels are not read
    where: str          # the file and the line, for messages


def read_table(lines, path, labelled=True):
    """The (number, line), ... of a table -> list of TableRow

    The first line names the columns. Commas, semicolons or tabs separate them. Only
    those above are read. A row is one line, so that a quote left open cannot swallow the
    next row. labelled: each row must have a label
    """
    # the columns
    lines = iter(lines)
    _, header = next(lines)
    separator = max(",;\t", key=header.count)
    columns = next(csv.reader([header.lower()], delimiter=separator))
    sequences, labels, names = (
        [i for i, column in enumerate(columns) if column.strip() in wanted]
        for wanted in (SEQUENCE, LABEL, NAME))
    wanted = "one column sequence" + " and one column label" * labelled
    require(len(sequences) == 1 and (len(labels) == 1 or not labelled),
            f"{path}: the first line of a table names {wanted}, and here it is "
            f"{header.strip()[:80]!r}")

    # the rows
    rows = []
    for number, line in lines:
        if line.isspace():
            continue
        where = f"{path}: line {number}"
        try:
            fields, = csv.reader([line], delimiter=separator, strict=True,
                                 skipinitialspace=True)
        except csv.Error as e:
            raise ValueError(f"{where}: {e}: is a quote left open?") from None
        require(len(fields) == len(columns),
                f"{where}: {len(fields)} fields, not {len(columns)} as above")
        sequence = not_missing(fields[sequences[0]], "sequence", where)
        label = not_missing(fields[labels[0]], "label", where) if labelled else ""
        name = " ".join(fields[names[0]].split()) if names else ""
        rows.append(TableRow(name or str(len(rows) + 1), clean_dna(sequence, where),
                             clean_label(label, where), where))
    require(rows, f"{path}: no rows below the names of the columns")
    return rows


def not_missing(value, column, where):
    value = value.strip()
    require(value not in MISSING, f"{where}: the {column} is missing ({value!r})")
    return value


def clean_label(label, where):
    """-> the label of a class, whole numbers spelled in one way: 1, 1.0 and 01 are 1"""
    if whole := re.fullmatch(r"\+?(-?)0*(\d+)(\.0*)?", label):
        return whole[1] + whole[2]
    number = re.fullmatch(r"[+-]?(\d+\.?\d*|\.\d+)(e[+-]?\d+)?", label, re.IGNORECASE)
    require(not number,
            f"{where}: the label {label} looks like a measured number: give classes")
    return label


# --------------------------------------------------------------------------------------
# Alpaca examples

def read_json(text, path, number=1):
    """-> the value of a JSON text that begins at line `number` of a file; NaN as null"""
    try:
        return json.loads(text, parse_constant=lambda name: None)
    except (ValueError, RecursionError) as e:
        line, column = number + getattr(e, "lineno", 1) - 1, getattr(e, "colno", 1)
        raise ValueError(f"{path}: line {line}, column {column}: broken JSON "
                         f"({getattr(e, 'msg', e)}): give an array of examples, or one "
                         "example per line") from None


def read_alpaca(path):
    """A JSON array of Alpaca examples, or one per line -> list of dicts, checked

    instruction, input ("" if there is none) and output are text. There may be a task,
    choices (the output is one of them) and either_strand. What is left out is counted.
    """
    # read and check
    lines = list(read_lines(path))
    text = "".join(line for _, line in lines)
    if text.lstrip().startswith("["):
        examples = read_json(text, path)
    else:
        examples = [read_json(line.rstrip(), path, number) for number, line in lines
                    if not line.isspace()]
    examples = [clean_example(example, f"{path}: example {number}")
                for number, example in enumerate(examples, start=1)]

    # leave out what is not read, and what has no answer
    for key in ("system", "history"):
        if n := sum(bool(example.pop(key, None)) for example in examples):
            print(f"{path}: {n:,} of {len(examples):,} examples have a {key}: left out")
    answered = [example for example in examples if example["output"].strip()]
    require(answered, f"{path}: no examples with an output")
    if n := len(examples) - len(answered):
        print(f"{path}: {n:,} of {len(examples):,} examples have no output: left out")
    return answered


def clean_example(example, where):
    """-> an Alpaca example with DNA cleaned and numbers as text. null is as good as
    nothing."""
    # text
    require(isinstance(example, dict),
            f"{where}: not an object with instruction, input and output")
    for key in ("instruction", "output"):
        require(key in example, f"{where}: no {key}: an Alpaca example has instruction, "
                "input and output")
    example = {key: value for key, value in example.items() if value is not None}
    for key in ("instruction", "input", "output", *{"task"}.intersection(example)):
        example[key] = as_text(example.get(key, ""), f"{where}: its {key}")
    output = example["output"]
    require(example["instruction"].strip(), f"{where}: no instruction")
    require(not output.rstrip().endswith(("</s>", END_OF_TEXT)),
            f"{where}: its output ends in a mark such as {END_OF_TEXT}: remove it, "
            "because one is added to each")
    require(isinstance(example.get("either_strand", False), bool),
            f"{where}: its either_strand is not true or false")
    example["input"] = clean_input(example["input"], where)

    # choices
    if "choices" in example:
        choices = example["choices"]
        require(isinstance(choices, list),
                f"{where}: its choices are not a list of texts")
        choices = [as_text(choice, f"{where}: a choice") for choice in choices]
        require(len(set(choices) - {""}) == len(choices),
                f"{where}: its choices are not all different")
        require(not output.strip() or output in choices,
                f"{where}: the output {output!r} is not among its choices")
        example["choices"] = choices
    return example


def as_text(value, what):
    """-> a text as it is, a number as JSON writes it"""
    value = json.dumps(value) if isinstance(value, (bool, int, float)) else value
    require(isinstance(value, str) and not re.search("[\ud800-\udfff]", value),
            f"{what} is not text")
    return value
