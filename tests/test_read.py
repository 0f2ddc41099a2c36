"""Reading files as users have them: what is read, and what is refused in one clear line."""
import bz2
import codecs
import csv
import gzip
import json
import lzma
import os
import random
import threading
from collections import Counter

import pytest

from dna.read import (BLOCK, canonical, clean_dna, clean_input, clean_label, dna_runs, is_dna,
                      read_alpaca, read_dna, read_fasta, read_lines, read_paragraphs, read_table,
                      reverse_complement, stretches)


def write(path, content):
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return str(path)


def random_dna(n, seed=0):
    return "".join(random.Random(seed).choices("ACGT", k=n))


def read_records(path):
    return list(read_fasta(read_lines(path), path))


def rows_of(path, labelled=True):
    return read_table(read_lines(path), path, labelled)


def refused(function, *args):
    """-> the message of the ValueError, which is one line"""
    with pytest.raises(ValueError) as e:
        result = function(*args)
        list(result)
    assert str(e.value).count("\n") == 0
    return str(e.value)


# -- files

@pytest.mark.parametrize("pack", [bytes, gzip.compress, bz2.compress, lzma.compress])
@pytest.mark.parametrize("name", ["x.txt", "x.GZ", "x.xz", "x[1].fa.bz2"])
def test_the_first_bytes_tell_how_a_file_is_packed(tmp_path, pack, name):
    text = "one\ntwo \u00e9\n" * 5000
    lines = [line for _, line in read_lines(write(tmp_path / name, pack(text.encode())))]
    assert "".join(lines) == text


def test_archives_of_several_members(tmp_path):
    for pack in (gzip.compress, bz2.compress, lzma.compress):
        path = write(tmp_path / "x", pack(b"one\n") + pack(b"two\n"))
        assert [line for _, line in read_lines(path)] == ["one\n", "two\n"]


@pytest.mark.parametrize("encoding,mark", [
    ("utf-8", codecs.BOM_UTF8), ("utf-16-le", codecs.BOM_UTF16_LE),
    ("utf-16-be", codecs.BOM_UTF16_BE)])
@pytest.mark.parametrize("pack", [bytes, gzip.compress])
def test_byte_order_marks(tmp_path, encoding, mark, pack):
    for text in (">a\nACGTACGTAC\n", "sequence,label\nACGT,1\n", '[{"instruction": "a"}]'):
        path = write(tmp_path / "x", pack(mark + text.encode(encoding)))
        assert "".join(line for _, line in read_lines(path)) == text


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_line_ends_and_line_numbers(tmp_path, end):
    path = write(tmp_path / "x", end.join(["a", "", "b" * 50, "c\x0b\x0c\x85\u2028d", "e"]))
    assert list(read_lines(path)) == [(1, "a\n"), (2, "\n"), (3, "b" * 50 + "\n"),
                                      (4, "c\x0b\x0c\x85\u2028d\n"), (5, "e")]
    parts = [(number, line.strip("\n")) for number, line in read_lines(path, 20)]
    assert [p for p in parts if p[0] == 3 and p[1]] == [(3, "b" * 20), (3, "b" * 20), (3, "b" * 10)]
    assert parts[-1] == (5, "e")


def test_a_pipe(tmp_path):
    """It cannot be searched back and forth, and has no name to go by."""
    for content in (b">a\nACGTACGTAC\n", gzip.compress(b">a\nACGTACGTAC\n")):
        out, into = os.pipe()
        writer = threading.Thread(target=lambda: (os.write(into, content), os.close(into)))
        writer.start()
        assert read_records(f"/dev/fd/{out}") == [("a", "ACGTACGTAC")]
        writer.join()
        os.close(out)


@pytest.mark.parametrize("content,message", [
    (b"", "an empty file"),
    (gzip.compress(b"", mtime=0), "an empty file"),
    (codecs.BOM_UTF8, "an empty file"),
    (b" \n\r\n \n", "an empty file"),
    (b"one\ncaf\xe9 au lait\n", "line 1 or after: not utf-8 text"),
    (b"PK\x03\x04\x14\x00\x00", "a zip archive or an Excel file: unpack it, or save the table as CSV"),
    ("ACGT\n".encode("utf-16-le"), "line 1: zero bytes"),
    (gzip.compress(random_dna(9000).encode())[:1000], "damaged or cut short"),
    (bz2.compress(random_dna(9000).encode())[:1000], "damaged or cut short"),
    (lzma.compress(random_dna(9000).encode())[:1000], "damaged or cut short"),
    (gzip.compress(b"ACGT")[:12] + b"????????", "damaged or cut short"),
    (b"BZh9 is no archive", "damaged or cut short"),
])
def test_files_refused(tmp_path, content, message):
    path = write(tmp_path / "x.fa.gz", content)
    assert f"{path}: {message}" in refused(read_lines, path)


def test_what_the_system_refuses(tmp_path):
    for path, error in [(tmp_path, IsADirectoryError), (tmp_path / "none", FileNotFoundError)]:
        with pytest.raises(error) as e:
            list(read_lines(str(path)))
        assert e.value.filename == str(path)


def test_paragraphs(tmp_path):
    path = write(tmp_path / "x.txt", "\n\none\r\ntwo\r\n\r\n \r\n\nthree \n")
    assert [p for p in read_paragraphs(path) if p] == ["one\ntwo", "three"]
    path = write(tmp_path / "y.txt", "word " * 20_000)
    parts = list(read_paragraphs(path))
    assert "".join(parts).replace(" ", "") == "word" * 20_000
    assert max(map(len, parts)) <= 20_000       # the stretch that prepare.py holds out


@pytest.mark.parametrize("text", [
    "One.\n<|endoftext|>\nTwo\nlines.\n<|endoftext|>\n", "One.<|endoftext|>Two\nlines.",
    "<|endoftext|>One.\n\n<|endoftext|><|endoftext|> Two\nlines.\n"])
def test_end_of_text_separates_documents(tmp_path, text):
    assert list(read_paragraphs(write(tmp_path / "x.txt", text))) == ["One.", "Two\nlines."]


@pytest.mark.parametrize("n", range(15_980, 16_002))
def test_end_of_text_is_found_at_the_edge_of_a_block(tmp_path, n):
    path = write(tmp_path / "x.txt", "a" * n + "<|endoftext|>" + "b" * 9000)
    assert "".join(f"{part} " for part in read_paragraphs(path)).replace("a ", "a").replace("b b", "bb") \
        == "a" * n + "b" * 9000 + " "


# -- DNA

def test_reverse_complement():
    assert reverse_complement("AACGTT") == "AACGTT"
    assert reverse_complement("GATTACAN") == "NTGTAATC"
    assert reverse_complement("RYSWKMBDHV") == "BDHVKMWSRY"
    dna = random_dna(100)
    assert reverse_complement(reverse_complement(dna)) == dna


@pytest.mark.parametrize("text,dna", [
    ("acgtn", "ACGTN"), ("ACGU", "ACGT"), (" AC\tGT\r\nAC GT\n", "ACGTACGT"), ("", ""),
    ("ACGTRYSWKMBDHVN", "ACGTRYSWKMBDHVN"), ("ACXXGT", "ACNNGT"),
    ("        1 gatcctccat atacaacggt\n       21 atctccacct", "GATCCTCCATATACAACGGTATCTCCACCT"),
    ("gatcctccat atacaacggt        20\natctccacct        30", "GATCCTCCATATACAACGGTATCTCCACCT"),
    ("GTGGGG TGGGGA GGGGAG", "GTGGGGAG"), ("GTG TGG GGA", "GTGGA"), ("AAA AAA AAA", "AAAAA"),
    ("A C G T", "ACGT"), ("ATG GCC AAA", "ATGGCCAAA"), ("AAAAAAAAAA AAAAAAAAAA", "A" * 20),
])
def test_clean_dna(text, dna):
    assert clean_dna(text, "here") == dna


@pytest.mark.parametrize("text,message", [
    ("MKVLAAGIVG", "'L' is no nucleotide: is this protein?"),
    ("MKVAAGSTRHDWYNKRRSSHHDDWKKVM", "few letters are A, C, G, T or N: is this protein?"),
    ("ACGT*", "'*' is no nucleotide: is this protein?"),
    ("ACG-T", "'-' is no nucleotide: remove the gaps"),
    ("ACG..T", "'.' is no nucleotide: remove the gaps"),
    ("ACGT7ACGT", "'7' is no nucleotide: give DNA"),
    ("ACGT;", "';' is no nucleotide: give DNA"),
    ("GTGGGG TGGGGA CCCCCC", "k-mers, but some of them do not overlap"),
])
def test_clean_dna_refused(text, message):
    assert f"here: {message}" in refused(clean_dna, text, "here")


@pytest.mark.parametrize("text,cleaned", [
    ("acgtacgtacgt", "ACGTACGTACGT"), ("ACGUACGUACGU", "ACGTACGTACGT"),
    ("ACGTACGT\nACGTACGT\n", "ACGTACGTACGTACGT"), ("1 acgtacgtac gtacgtacgt", "ACGTACGTACGTACGTACGT"),
    ("GTGGGG TGGGGA GGGGAG", "GTGGGGAG"), ("ACGTACGTNNNR", "ACGTACGTNNNR"),
    *((prose, prose) for prose in (
        "", "a cat", "CAT", "Magna Carta", "That was a sunny day", "An act", "acgtacgt is DNA",
        "AACG: promoter\nTTGA: none\nGATT", "3 + 4", "2023-01-01", "MKVLAAGIVG", ">a\nACGTACGTAC")),
])
def test_clean_input(text, cleaned):
    assert clean_input(text, "here") == cleaned


def test_clean_input_refused():
    for text in ("ACGT--ACGT", "acgtacgtac..gtacgtacgtacgtacgt", "ACGTACGTAC\nACGT-ACGTA"):
        assert "remove the gaps" in refused(clean_input, text, "here")


def test_fasta(tmp_path):
    """Several records, wrapped lines, lower case, N, other codes, RNA, Windows lines, an empty one,
    comments, gaps, the same name twice, no name"""
    path = write(tmp_path / "x.fa", "; old comment\n>one  first\r\nACGTACGTac\r\ngtNNNNNACGTRTTTTTTTT"
                 "\r\n\r\n>two\r\n>three\r\n;in between\r\nacguacguu\r\nACGT\r\n>three\nAC--GT..XACGT\n"
                 "> \nGG\n")
    assert read_records(path) == [
        ("one first", "ACGTACGTACGTNNNNNACGTRTTTTTTTT"), ("two", ""), ("three", "ACGTACGTTACGT"),
        ("three", "ACGTNACGT"), ("line 13", "GG")]
    counts = Counter()
    assert list(read_dna(path, counts)) == ["ACGTACGTACGT", "TTTTTTTT", "ACGTACGTTACGT"]
    assert counts == {"records": 5, "N": 6, "other ambiguous letters": 1, "gaps": 4,
                      "bases in stretches under 8": 14}


def test_stretches():
    assert stretches("ACGTACGTNACGTACGNACGTACGTAC") == ["ACGTACGT", "ACGTACGTAC"]
    assert stretches("") == stretches("NNNNNNNN") == stretches("acgtacgtac") == []


def test_what_is_dna():
    assert is_dna("A") and is_dna("ACGTRYN") and not is_dna("") and not is_dna("ACGT U")
    assert is_dna("ACGTACGT", 8) and not is_dna("ACGTACG", 8) and not is_dna("ACGTACGT\n", 8)
    assert dna_runs("Is ACGTN or GGGGGG it?", 5) == ["ACGTN", "GGGGGG"]


def test_canonical():
    dna = random_dna(99)
    assert canonical(dna) == canonical(reverse_complement(dna)) in (dna, reverse_complement(dna))


@pytest.mark.parametrize("width", [61, 60, 10 ** 9])
def test_long_records_come_in_blocks(tmp_path, width):
    """They are the same blocks, however the lines are wrapped."""
    dna = random_dna(350_000)
    path = write(tmp_path / "x.fa", ">chr\n" + "\n".join(
        dna[i:i + width] for i in range(0, len(dna), width)) + "\n")
    assert list(read_dna(path, Counter())) == [dna[i:i + BLOCK] for i in range(0, len(dna), BLOCK)]
    assert read_records(path) == [("chr", dna)]


def test_a_long_name_is_not_sequence(tmp_path):
    path = write(tmp_path / "x.fa", ">" + "ACGT" * 10_000 + "\nACGTACGTAC\n")
    assert list(read_dna(path, Counter())) == ["ACGTACGTAC"]


@pytest.mark.parametrize("text,message", [
    (">p\nMKLVAAGIVGLLLAQWERTY\n", "line 2: 'L' is no nucleotide: is this protein?"),
    (">p\n" + "ACGTACGTAC" * 5000 + "\nMKLVA\n", "line 3: 'L' is no nucleotide"),
    ("ACGTACGT\n", "line 1: not FASTA"),
    ("@read\nACGT\n+\nIIII\n", "line 1: not FASTA"),
    ("; nothing else\n", "no records"),
])
def test_fasta_refused(tmp_path, text, message):
    path = write(tmp_path / "x.fa", text)
    assert f"{path}: {message}" in refused(read_dna, path, Counter())


# -- tables

@pytest.mark.parametrize("text", [
    "sequence,label\nACGT,1\nTTTT,0\n",
    "sequence;label\nACGT;1\nTTTT;0\n",
    "sequence\tlabel\nACGT\t1\nTTTT\t0\n",
    "Label, SEQUENCE \n1,ACGT\n\n0,TTTT",
    ",Seq,Labels\n0,ACGT,1.0\n1,TTTT,0.0\n",
    '"seq","target","note"\n"ACGT"," 1","a, b"\n"tttt","00","c ""d"""\n',
    "sequence, label\nACGU, 1\nT T T T, 0\n",
])
def test_tables(tmp_path, text):
    rows = rows_of(write(tmp_path / "x.csv", text))
    assert [(row.sequence, row.label) for row in rows] == [("ACGT", "1"), ("TTTT", "0")]
    assert [(row.name, row.label) for row in rows_of(f"{tmp_path}/x.csv", labelled=False)] == [
        ("1", ""), ("2", "")]
    numbers = [i for i, line in enumerate(text.splitlines(), start=1) if line][1:]
    assert [row.where for row in rows] == [f"{tmp_path}/x.csv: line {i}" for i in numbers]


def test_long_fields(tmp_path):
    dna = random_dna(300_000)
    path = write(tmp_path / "x.csv", f"note,sequence,label\n{'n' * 200_000},{dna},1\nn,ACGT,0\n")
    assert [(row.sequence, row.label) for row in rows_of(path)] == [(dna, "1"), ("ACGT", "0")]


def test_names_of_rows(tmp_path):
    path = write(tmp_path / "x.csv", "ID,sequence\n x  1,ACGT\n,TTTT\n")
    assert [(row.name, row.sequence) for row in rows_of(path, labelled=False)] == [
        ("x 1", "ACGT"), ("2", "TTTT")]


@pytest.mark.parametrize("text,message", [
    ("id,label\nACGT,1\n", "the first line of a table names one column sequence and one column label, and here it is 'id,label'"),
    ("ACGT,1\nACGT,0\n", "the first line of a table names"),
    ("sequence,seq,label\nACGT,ACGT,1\n", "the first line of a table names one column"),
    ("sequence,label\n", "no rows"),
    ("sequence,label\nACGT,\n", "line 2: the label is missing ('')"),
    ("sequence,label\n,1\n", "line 2: the sequence is missing ('')"),
    ("sequence,label\nACGT,1\nNA,1\n", "line 3: the sequence is missing ('NA')"),
    ("sequence,label\nACGT,1\nnan,1\n", "line 3: the sequence is missing ('nan')"),
    ("sequence,label\nACGT,NULL\n", "line 2: the label is missing ('NULL')"),
    ("sequence,label\nACGT,None\n", "line 2: the label is missing ('None')"),
    ("sequence,label\n\nACGT\n", "line 3: 1 fields, not 2"),
    ("sequence,label\nACGT,1,2\n", "line 2: 3 fields, not 2"),
    ("sequence,label\nACGT,1\nMKLV,0\n", "line 3: 'L' is no nucleotide"),
    ("sequence,label\nAC-GT,1\n", "line 2: '-' is no nucleotide: remove the gaps"),
    ('sequence,label\n"ACGT,1\nTTTT,0\n', "line 2: unexpected end of data: is a quote left open?"),
    ('sequence,label\nACGT,"1\nTTTT",0\n', "line 2: unexpected end of data: is a quote left open?"),
    ("sequence,label\nACGT,0.73\n", "line 2: the label 0.73 looks like a measured number"),
    ("sequence,label\nACGT,1e-3\n", "line 2: the label 1e-3 looks like a measured number"),
])
def test_tables_refused(tmp_path, text, message):
    path = write(tmp_path / "train.csv", text)
    assert f"{path}: {message}" in refused(rows_of, path)


def test_labels():
    spellings = {"1": "1", "1.0": "1", "01": "1", "+1": "1", "-1": "-1", "0.0": "0", "1.": "1",
                 "weak": "weak", "A1.0": "A1.0", "1-2": "1-2", "none": "none"}
    assert {label: clean_label(label, "here") for label in spellings} == spellings


# -- Alpaca examples

GOOD = {"instruction": "Say it.", "input": "", "output": "It."}


@pytest.mark.parametrize("text", [
    json.dumps([GOOD, GOOD]), json.dumps(GOOD) + "\n\n" + json.dumps(GOOD),
    "\ufeff" + json.dumps([GOOD, GOOD]), "\ufeff" + json.dumps(GOOD) + "\r\n" + json.dumps(GOOD),
    json.dumps([{k: v for k, v in GOOD.items() if k != "input"}] * 2),
    json.dumps([GOOD | {"input": None}] * 2), json.dumps([GOOD | {"choices": None}] * 2)])
def test_alpaca(tmp_path, text):
    assert read_alpaca(write(tmp_path / "x.json", text)) == [GOOD, GOOD]


def test_alpaca_lines_end_at_line_ends_only(tmp_path):
    example = GOOD | {"output": "a\u2028b\x85c"}
    path = write(tmp_path / "x.jsonl", (json.dumps(example, ensure_ascii=False) + "\n") * 2)
    assert read_alpaca(path) == [example, example]


def test_alpaca_numbers(tmp_path):
    path = write(tmp_path / "x.json", json.dumps([
        {"instruction": "Add.", "input": 12, "output": 3, "choices": [3, 4.5]},
        {"instruction": "Is it?", "output": True}]))
    assert read_alpaca(path) == [
        {"instruction": "Add.", "input": "12", "output": "3", "choices": ["3", "4.5"]},
        {"instruction": "Is it?", "input": "", "output": "true"}]


def test_alpaca_without_output(tmp_path, capsys):
    examples = [GOOD, GOOD | {"output": ""}, GOOD | {"output": " \n"}, GOOD | {"output": None}]
    path = write(tmp_path / "x.json", json.dumps(examples))
    assert read_alpaca(path) == [GOOD]
    assert f"{path}: 3 of 4 examples have no output: left out" in capsys.readouterr().out


def test_dna_of_examples_is_cleaned(tmp_path):
    examples = [GOOD | {"input": text} for text in ("acgtacgtac", "ACGUACGUACG\nUACG", "A cat sat.")]
    assert [r["input"] for r in read_alpaca(write(tmp_path / "x.json", json.dumps(examples)))] == [
        "ACGTACGTAC", "ACGTACGTACGTACG", "A cat sat."]


def test_nan_is_null(tmp_path):
    """pandas and json.dumps make it of an empty cell."""
    nan = float("nan")
    path = write(tmp_path / "x.json", json.dumps([GOOD | {"input": nan, "choices": nan}, GOOD | {"output": nan}]))
    assert read_alpaca(path) == [GOOD]


def test_what_is_not_read_is_counted(tmp_path, capsys):
    """LLaMA-Factory's Alpaca has a system prompt and a history."""
    path = write(tmp_path / "x.json", json.dumps([
        GOOD | {"system": "Be kind.", "history": [["Hello", "Hi"]]}, GOOD | {"system": "", "history": []},
        GOOD | {"system": "Be kind."}]))
    assert read_alpaca(path) == [GOOD] * 3
    assert capsys.readouterr().out.splitlines() == [
        f"{path}: 2 of 3 examples have a system: left out",
        f"{path}: 1 of 3 examples have a history: left out"]


@pytest.mark.parametrize("text,message", [
    ('[{"instruction": "a", "output": "b</s>"}]', "example 1: its output ends in a mark"),
    ('[{"instruction": "a", "output": "b<|endoftext|> "}]', "example 1: its output ends in a mark"),
    ('[{"instruction": "a", "output": "b"},\n {"instruction": }]', "line 2, column 18: broken JSON"),
    ('{"instruction": "a", "output": "b"}\n{"instruction"\n', "line 2, column 15: broken JSON"),
    ('[{"instruction": "a", "output": "b"}, {"instruction": "a"}]', "example 2: no output"),
    ('[{"output": "a"}]', "example 1: no instruction"),
    ('[{"instruction": " ", "output": "a"}]', "example 1: no instruction"),
    ('[{"instruction": "a", "output": ""}]', "no examples with an output"),
    ('{"id": "seed", "instruction": "a", "instances": []}', "example 1: no output: an Alpaca example"),
    ('[1]', "example 1: not an object"),
    ('[]', "no examples"),
    ('[{"instruction": "a", "output": "b", "input": ["c"]}]', "example 1: its input is not text"),
    ('[{"instruction": "a", "output": {"b": 1}}]', "example 1: its output is not text"),
    ('[{"instruction": "a", "output": "\\ud800"}]', "example 1: its output is not text"),
    ('[{"instruction": "a", "output": "b", "choices": ["c"]}]', "'b' is not among its choices"),
    ('[{"instruction": "a", "output": "b", "choices": "abc"}]', "its choices are not a list"),
    ('[{"instruction": "a", "output": "b", "choices": [["b"]]}]', "a choice is not text"),
    ('[{"instruction": "a", "output": "b", "choices": ["b", "b"]}]', "are not all different"),
    ('[{"instruction": "a", "output": "b", "task": [7]}]', "its task is not text"),
    ('[{"instruction": "a", "output": "b", "either_strand": "yes"}]', "its either_strand is not"),
    ('[{"instruction": "a", "output": "b", "input": "acgtacgtacgtacgtacgtacgtacg-"}]',
     "example 1: '-' is no nucleotide: remove the gaps"),
    ('{\n "data": [\n]}', "line 1, column 2: broken JSON"),
    ('{"data": []}', "example 1: no instruction"),
])
def test_alpaca_refused(tmp_path, text, message):
    path = write(tmp_path / "x.json", text)
    found = refused(read_alpaca, path)
    assert found.startswith(f"{path}: ") and message in found


def test_csv_limit_is_lifted():
    assert csv.field_size_limit() > 10 ** 9
