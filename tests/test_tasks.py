"""Prompts, tasks, leaks, and the examples that tables become."""
import json
import os
import re
import time

import numpy as np
import pytest

from conftest import GUE_FOLDERS, example, random_dna
from dna.read import TableRow, reverse_complement
from dna.tasks import (Task, alpaca_prompt, check_labels, describe, find_files, find_leaks, find_tables,
                       fold, is_scored, overlapping, read_description, read_examples, wordings)

# -- the prompt

def test_alpaca_prompt():
    assert alpaca_prompt("Say it.") == (
        "Below is an instruction that describes a task. Write a response that appropriately "
        "completes the request.\n\n### Instruction:\nSay it.\n\n### Response:\n")
    assert alpaca_prompt("Say it.", "ACGT") == (
        "Below is an instruction that describes a task, paired with an input that provides further "
        "context. Write a response that appropriately completes the request.\n\n### Instruction:\n"
        "Say it.\n\n### Input:\nACGT\n\n### Response:\n")


def test_dna_is_broken_in_its_middle():
    dna = random_dna(400)
    assert fold(dna) == dna[:200] + "\n" + dna[200:]
    assert fold("ACGTACGTACGTACGTA") == "ACGTACGT\nACGTACGTA"
    for text in ("", "ACGTACGTACGTACG", "Is ACGTACGTACGTACGT a promoter?", dna.lower()):
        assert fold(text) == text
    assert "\n" + dna[200:] + "\n\n### Response" in alpaca_prompt("Splice?", dna)


# -- leaks

def brute_force(train, scored):
    return {i for i, t in enumerate(train) if any(
        t in h or t in reverse_complement(h) or h in t or reverse_complement(h) in t for h in scored)}


@pytest.mark.parametrize("seed", range(20))
@pytest.mark.parametrize("letters", ["ACGTN", "ACGTRYN", "AC"])
def test_overlapping_equals_brute_force(seed, letters):
    """Sequences cut from a short genome, so that many overlap, some of them with N."""
    rng = np.random.default_rng(seed)
    p = np.array([.25, .24, .25, .25] + [.01] * (len(letters) - 4))[:len(letters)]
    genome = "".join(rng.choice(list(letters), p=p / p.sum(), size=400))

    def cut(n):
        for start, length, strand in zip(rng.integers(380, size=n), rng.integers(20, 80, size=n),
                                         rng.integers(2, size=n)):
            piece = genome[start:start + length]
            if len(piece) >= 20:
                yield reverse_complement(piece) if strand else piece

    train, scored = list(cut(150)), list(cut(30))
    expected = brute_force(train, scored)
    assert overlapping(train, scored) == expected and 10 < len(expected) < 140
    assert overlapping(train, []) == overlapping([], scored) == set()


def test_overlapping_in_repeats():
    """Sequences whose windows are all alike"""
    train = ["A" * n for n in range(20, 60)] + ["AC" * n for n in range(10, 30)] + ["A" * 19 + "C"]
    scored = ["A" * 30 + "C" + "A" * 30, "T" * 40, "ACAC" * 8]
    assert overlapping(train, scored) == brute_force(train, scored)


def test_overlapping_tells_ambiguous_letters_apart():
    """N and A look alike to the search, and not to the comparison that follows it."""
    dna = random_dna(60)
    assert overlapping([dna[:30] + "N" + dna[31:]], [dna[:30] + "A" + dna[31:]]) == set()
    assert overlapping([dna[5:30] + "R" + dna[31:40]], [dna[:30] + "R" + dna[31:]]) == {0}
    assert overlapping([dna[5:30] + "R"], [reverse_complement(dna[:30] + "R" + dna[31:])]) == {0}


def test_overlapping_takes_time_that_grows_with_the_rows():
    """A primer that all rows share does not make every pair of rows a candidate."""
    rng = np.random.default_rng(0)
    primer = random_dna(20)
    rows = [primer + "".join(row) for row in rng.choice(list("ACGT"), size=(33_000, 40))]
    train, scored = rows[:30_000], rows[30_000:]
    train[5], train[9] = scored[7], scored[3][3:-5]
    started = time.perf_counter()
    assert overlapping(train, scored) == {5, 9}
    assert time.perf_counter() - started < 10        # compared pair by pair, it takes minutes


def test_leaks_of_examples():
    a, b, c = (random_dna(60, seed) for seed in range(3))
    scored = [example("Is it?", a), example("Count to 3."), example("Which?", "ACGTAC", task="x"),
              example("What is he?", "A tall man.", task="talk"), example("Hello", task="talk")]
    train = {
        "the same DNA": (example("Is this?", a), True),
        "on the other strand": (example("Is it?", reverse_complement(a)), True),
        "inside": (example("Is it?", a[5:40]), True),
        "around": (example("Is it?", b + a + c), True),
        "as a few-shot example": (example("Is it?", f"{a}: yes\n{b}: no\n{c}"), True),
        "in the instruction": (example(f"Is {a.lower()} a gene?"), True),
        "other DNA": (example("Is it?", b), False),
        "the same question": (example("Count to 3.", output="1 2 3"), True),
        "another question": (example("Count to 4."), False),
        "the same question, another input": (example("Is it?", "A tall man."), False),
        "short DNA in another prompt": (example("What?", "ACGTAC", task="x"), True),
        "short DNA of another task": (example("What?", "ACGTAC", task="y"), False),
        "the same text, another question": (example("Who?", "A tall man.", task="talk"), False),
        "no input": (example("Good bye", task="talk"), False)}
    found = find_leaks([r for r, _ in train.values()], scored)
    assert [name for i, name in enumerate(train) if i in found] == \
        [name for name, (_, leaks) in train.items() if leaks]


def test_what_is_scored():
    names = {"x.dev.json": True, "x.test.json": True, "test.json": True, "dev.json": True,
             "x.dev.reworded.json": False, "test.train.json": False, "dev.json.json": False,
             "x.validation.json": True, "x.train.json": False, "latest.json": False,
             "contest.json": False, "alpaca.json": False, "x.val.json": True,
             "unseen/x.dev.json": True}
    assert {name: is_scored(name) for name in names} == names


# -- tables and their labels

def check(splits, words=None):
    """{split: labels} -> check_labels() of rows that have them"""
    words = words or {label: label for labels in splits.values() for label in labels}
    rows = {split: [TableRow("", "ACGT", label, f"{split} {i}") for i, label in enumerate(labels)]
            for split, labels in splits.items() if labels}
    check_labels(rows, Task("x", "x", [], words, False), "task.json")


@pytest.mark.parametrize("labels", [["+", "-"], ["-1", "1"], ["1-2", "12"], ["A+", "A-"], ["none", "weak"],
                                    list(map(str, range(50))),
                                    [f"class {i}" for i in range(60)] * 30])
def test_labels(labels):
    check({"train": labels})


def test_sixty_numbers_that_task_json_names():
    labels = list(map(str, range(60)))
    check({"train": labels * 30}, {label: f"family {label}" for label in labels})
    with pytest.raises(ValueError, match="the label '59' is none of 0, 1.*: name all labels in task.json"):
        check({"train": labels * 30}, {label: f"family {label}" for label in labels[:-1]})


@pytest.mark.parametrize("train,dev,message", [
    (["weak", "Weak"], [], "train 1: the label 'Weak' is spelled 'weak' elsewhere"),
    (["True", "False"], ["TRUE"], "dev 0: the label 'TRUE' is spelled 'True' elsewhere"),
    (["non promoter", "promoter"], ["non-promoter"], "dev 0: the label 'non-promoter' is spelled"),
    (["0", "1"], ["0", "2"], "dev 1: no training row has label '2'"),
    (["1", "1"], [], "train 1: all training rows up to here have the same label"),
    (list(map(str, range(60))) * 20, [], "60 labels in the 1,200 rows up to here: give classes by name"),
    ([f"gene {i}" for i in range(60)] * 2, [], "60 labels in the 120 rows up to here: give classes by"),
    (["A", "B", "A;B"], [], "train 2: the label 'A;B' looks like several: give one per row"),
    (["A", "B"], ["A|B"], "dev 0: the label 'A|B' looks like several"),
    ([], ["a", "A"], "dev 1: the label 'A' is spelled 'a'"),
])
def test_labels_refused(train, dev, message):
    with pytest.raises(ValueError, match=message):
        check({"train": train, "dev": dev})


def test_names_of_splits(tmp_path, capsys):
    """validation.csv is what `datasets` calls it; a table that is no split is named."""
    for name in ("a/train.csv", "a/validation.csv", "a/extra.csv", "a/all.tsv.gz", "b/alone.csv"):
        os.makedirs(os.path.dirname(tmp_path / name), exist_ok=True)
        (tmp_path / name).write_text("x")
    assert find_tables(str(tmp_path)) == {f"{tmp_path}/a": {
        "train": f"{tmp_path}/a/train.csv", "dev": f"{tmp_path}/a/validation.csv"}}
    assert capsys.readouterr().out == (f"{tmp_path}/a: ignored, because neither train, dev nor test: "
                                       "all.tsv.gz, extra.csv\n")


def test_find_tables(tmp_path):
    for name in ("a/train.csv", "a/valid.tsv.gz", "a/notes.csv", "b[1]/c/TEST.CSV", "d/e.csv"):
        os.makedirs(os.path.dirname(tmp_path / name), exist_ok=True)
        (tmp_path / name).write_text("x")
    if os.path.exists(tmp_path / "b[1]/c/test.csv"):
        pytest.skip("a file system that does not tell case")
    assert find_tables(str(tmp_path)) == {f"{tmp_path}/a": {
        "train": f"{tmp_path}/a/train.csv", "dev": f"{tmp_path}/a/valid.tsv.gz"}}
    assert find_tables(f"{tmp_path}/d/e.csv") == {f"{tmp_path}/d/e": {"all": f"{tmp_path}/d/e.csv"}}
    with pytest.raises(ValueError, match="no task"):
        find_tables(f"{tmp_path}/d")
    with pytest.raises(ValueError, match="a split of a task: give its folder"):
        find_tables(f"{tmp_path}/a/train.csv")
    (tmp_path / "a/dev.csv").write_text("x")
    with pytest.raises(ValueError, match="two tables of dev rows"):
        find_tables(str(tmp_path))


@pytest.mark.parametrize("text,task", [
    ('{"asks": " strength", "labels": {"0": "weak", "1.0": "b"}}', ("strength", {"0": "weak", "1": "b"}, False)),
    ('\ufeff{"asks": "strength", "either_strand": true}', ("strength", {}, True))])
def test_task_json(tmp_path, text, task):
    (tmp_path / "task.json").write_text(text, encoding="utf-8")
    assert read_description(str(tmp_path / "task.json")) == task


@pytest.mark.parametrize("text", [
    "[]", '"x"', "{}", '{"asks": ""}', '{"asks": 3}', '{"asks": "a", "label": {"0": "b"}}',
    '{"asks": "a", "labels": ["b", "c"]}', '{"asks": "a", "labels": {"0": "b", "1": "b"}}',
    '{"asks": "a", "labels": {"0": ""}}', '{"asks": "a", "labels": {"0": 1}}',
    '{"asks": "a", "either_strand": "yes"}'])
def test_task_json_refused(tmp_path, text):
    (tmp_path / "task.json").write_text(text)
    with pytest.raises(ValueError, match='task.json: write {"asks": "enhancer strength"'):
        read_description(str(tmp_path / "task.json"))


def test_broken_task_json(tmp_path):
    (tmp_path / "task.json").write_text("{\n")
    with pytest.raises(ValueError, match="line 2, column 1: broken JSON"):
        read_description(str(tmp_path / "task.json"))


# -- what a task asks

def test_each_task_asks_in_its_own_words():
    """No instruction, known or unseen, is that of two tasks of GUE."""
    tasks = [describe(folder, "", []) for folder in GUE_FOLDERS]
    assert len({task.name for task in tasks}) == 28
    asked = []
    for task in tasks:
        known, unseen = wordings(task)
        assert (len(known), len(unseen)) == (12, 2)
        asked += known + unseen
        assert not any(re.search("[{}]", instruction) for instruction in known + unseen)
    assert len(set(asked)) == len(asked) == 28 * 14
    assert len({instruction.casefold() for instruction in asked}) == len(asked)


def test_the_papers_wording_comes_first():
    known, unseen = wordings(describe("GUE/splice/reconstructed", "", []))
    assert known[0] == ("Determine splice site detection of following dna sequence, The result will "
                        "be one of the following: Acceptor Sites, Donor Sites, Non-Splice Sites.")
    assert "Is there a splice donor here?" in known
    assert unseen == ["Please do splice site detection for me.",
                      "Does this sequence have a splice site in its middle?"]


def test_a_table_of_ones_own_asks_in_general_words(tmp_path):
    known, unseen = wordings(describe("mine/exon_ends", "", ["no", "yes"]))
    assert len(known) == 8 and unseen == ["Please do exon ends for me."]
    (tmp_path / "task.json").write_text('{"asks": "enhancer strength"}')
    described = wordings(describe("GUE/tf/0", str(tmp_path / "task.json"), ["0", "1"]))
    assert [len(part) for part in described] == [8, 1]
    assert all("enhancer strength" in instruction for part in described for instruction in part)


# -- examples

GOOD = {"instruction": "Say it.", "output": "It."}


def test_task_names(tmp_path):
    (tmp_path / "x.train.json").write_text(json.dumps([GOOD | {"task": "own"}, GOOD]))
    (tmp_path / "plain.jsonl").write_text(json.dumps(GOOD))
    examples = read_examples([str(tmp_path / "*.json"), str(tmp_path / "plain.jsonl")])
    assert [e["task"] for e in examples] == ["own", "x", "plain"]


@pytest.mark.parametrize("name", ["x", "x/train.csv", "x/train.csv.gz", "x/dev.tsv"])
def test_tables_are_for_prepare(tmp_path, name):
    os.makedirs(tmp_path / "x", exist_ok=True)
    if name != "x":
        (tmp_path / name).write_text("sequence,label\nACGTACGT,0\n")
    with pytest.raises(ValueError, match=f"{name}: no Alpaca file: prepare.py --tasks makes"):
        read_examples([str(tmp_path / name)])


def test_files_are_found_once(tmp_path):
    for name in ("a.json", "b.json", "a[1].json"):
        (tmp_path / name).write_text("[]")
    a, b, odd = (str(tmp_path / name) for name in ("a.json", "b.json", "a[1].json"))
    assert find_files([a, f"{tmp_path}/[ab].json", f"{tmp_path}/./a.json", odd]) == \
        [f"{tmp_path}/./a.json", b, odd]
    with pytest.raises(FileNotFoundError, match="none.json: no such file: run prepare.py"):
        find_files([a, f"{tmp_path}/none.json"])
