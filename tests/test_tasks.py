"""Prompts, templates, leaks, and the rows that records become."""
import json
import os

import numpy as np
import pytest

import instruct
from bpe import Tokenizer
from conftest import LETTERS, random_dna, record
from dna.read import reverse_complement
from dna.tasks import (alpaca_parts, alpaca_prompt, find_files, find_leaks, fold, is_scored,
                       overlapping, read_examples, without_leaks)
from instruct import InstructConfig, encode_prompts, encode_rows

# -- the prompt

@pytest.fixture(scope="module")
def tok():
    prompts = [alpaca_prompt("Find the gene in it."), alpaca_prompt("Find it.", "ACGTACGTACGT")]
    return Tokenizer.train(prompts * 3, 400)


def test_alpaca_prompt():
    assert alpaca_prompt("Say it.") == (
        "Below is an instruction that describes a task. Write a response that appropriately "
        "completes the request.\n\n### Instruction:\nSay it.\n\n### Response:\n")
    assert alpaca_prompt("Say it.", "ACGT") == (
        "Below is an instruction that describes a task, paired with an input that provides further "
        "context. Write a response that appropriately completes the request.\n\n### Instruction:\n"
        "Say it.\n\n### Input:\nACGT\n\n### Response:\n")


def test_dna_is_broken_in_its_middle(tok):
    dna = random_dna(400)
    assert fold(dna) == dna[:200] + "\n" + dna[200:]
    assert fold("ACGTACGTACGTACGTA") == "ACGTACGT\nACGTACGTA"
    for text in ("", "ACGTACGTACGTACG", "Is ACGTACGTACGTACGT a promoter?", dna.lower()):
        assert fold(text) == text
    assert "\n" + dna[200:] + "\n\n### Response" in alpaca_prompt("Splice?", dna)
    (ids,), _ = encode_prompts(tok, [("Splice?", dna)], 10 ** 6)
    left, right = tok.encode(dna[:200]), tok.encode(dna[200:])
    assert str(left + tok.encode("\n") + right)[1:-1] in str(ids.tolist())


def test_encode_prompts(tok):
    """Whole prompts have the ids of their text; a cut one lacks the end of its input."""
    asked = [("Say it.", ""), ("Find it.", "ACGT" * 30), ("Find it.", "Some prose, CAT and NNACGTACGTA."),
             ("Say what {braces} are.", " spaces \n")]
    prompts, n_cut = encode_prompts(tok, asked, 10 ** 6)
    assert n_cut == 0
    assert [p.tolist() for p in prompts] == [tok.encode(alpaca_prompt(*a)) for a in asked]
    before, after = (tok.encode(part) for part in alpaca_parts("Find it.", True))
    (cut, short), n_cut = encode_prompts(tok, asked[:2][::-1], len(before) + len(after) + 3)
    assert cut.tolist() == before + tok.encode("ACGT" * 30)[:3] + after and n_cut == 1
    assert short.tolist() == tok.encode(alpaca_prompt("Say it."))
    assert encode_prompts(tok, asked[1:2], len(before) + len(after) - 1) == ([None], 0)
    assert encode_prompts(tok, [], 10) == ([], 0)


# -- leaks

@pytest.mark.parametrize("seed", range(5))
def test_overlapping_equals_brute_force(seed):
    """Sequences cut from a short genome, so that many overlap, some of them with N."""
    rng = np.random.default_rng(seed)
    genome = "".join(rng.choice(list("ACGTN"), p=[.25, .24, .25, .25, .01], size=400))

    def cut(n):
        for start, length, strand in zip(rng.integers(380, size=n), rng.integers(20, 80, size=n),
                                         rng.integers(2, size=n)):
            piece = genome[start:start + length]
            if len(piece) >= 20:
                yield reverse_complement(piece) if strand else piece

    train, scored = list(cut(150)), list(cut(30))
    expected = {i for i, t in enumerate(train) if any(
        t in h or t in reverse_complement(h) or h in t or reverse_complement(h) in t
        for h in scored)}
    assert overlapping(train, scored) == expected and 10 < len(expected) < 140
    assert overlapping(train, []) == overlapping([], scored) == set()


def test_leaks_of_alpaca_records():
    a, b, c = (random_dna(60, seed) for seed in range(3))
    scored = [record("Is it?", a), record("Count to 3."), record("Which?", "ACGTAC", task="x"),
              record("What is he?", "A tall man.", task="talk"), record("Hello", task="talk")]
    train = {
        "the same DNA": (record("Is this?", a), True),
        "on the other strand": (record("Is it?", reverse_complement(a)), True),
        "inside": (record("Is it?", a[5:40]), True),
        "around": (record("Is it?", b + a + c), True),
        "as a few-shot example": (record("Is it?", f"{a}: yes\n{b}: no\n{c}"), True),
        "in the instruction": (record(f"Is {a.lower()} a gene?"), True),
        "other DNA": (record("Is it?", b), False),
        "the same question": (record("Count to 3.", output="1 2 3"), True),
        "another question": (record("Count to 4."), False),
        "the same question, another input": (record("Is it?", "A tall man."), False),
        "short DNA in another prompt": (record("What?", "ACGTAC", task="x"), True),
        "short DNA of another task": (record("What?", "ACGTAC", task="y"), False),
        "the same text, another question": (record("Who?", "A tall man.", task="talk"), False),
        "no input": (record("Good bye", task="talk"), False)}
    found = find_leaks([r for r, _ in train.values()], scored)
    assert [name for i, name in enumerate(train) if i in found] == \
        [name for name, (_, leaks) in train.items() if leaks]


def test_what_is_scored():
    names = {"x.dev.json": True, "x.test.json": True, "test.json": True, "dev.json": True,
             "x.dev.reworded.json": True, "x.train.json": False, "latest.json": False,
             "contest.json": False, "alpaca.json": False, "x.val.json": True}
    assert {name: is_scored(name) for name in names} == names


# -- records

GOOD = {"instruction": "Say it.", "output": "It."}


def test_task_names(tmp_path):
    (tmp_path / "x.train.json").write_text(json.dumps([GOOD | {"task": "own"}, GOOD]))
    (tmp_path / "plain.jsonl").write_text(json.dumps(GOOD))
    records = read_examples([str(tmp_path / "*.json"), str(tmp_path / "plain.jsonl")])
    assert [r["task"] for r in records] == ["own", "x", "plain"]


def test_folders_of_tables_are_scored(tmp_path):
    """As GUE has them: the test rows, or the dev rows, asked in the first template."""
    for name in ("EMP/H3/train", "EMP/H3/dev", "tf/0/dev", "tf/0/test"):
        path = tmp_path / "GUE" / f"{name}.csv"
        path.parent.mkdir(parents=True, exist_ok=True)
        dna = {"train": "AAA", "dev": "GGG", "test": "TTT"}[path.stem] + "ACGTACGT"
        path.write_text(f"sequence,label\n{dna},0\n{dna},1\n")
    records = read_examples([str(tmp_path / "GUE")])
    assert [(r["task"], r["input"][:3], r["output"]) for r in records] == [
        ("EMP_H3", "GGG", "No Mark"), ("EMP_H3", "GGG", "Mark"),
        ("tf_0", "TTT", "Background Sequences"), ("tf_0", "TTT", "Binding Sites")]
    with pytest.raises(ValueError, match="GUE: a folder: let prepare.py"):
        instruct.records_to_tune(InstructConfig(tasks=(str(tmp_path / "GUE"),)), [])
    os.remove(tmp_path / "GUE" / "EMP" / "H3" / "dev.csv")
    with pytest.raises(ValueError, match="H3: no test.csv or dev.csv"):
        read_examples([str(tmp_path / "GUE")])


def test_files_are_found_once(tmp_path):
    for name in ("a.json", "b.json", "a[1].json"):
        (tmp_path / name).write_text("[]")
    a, b, odd = (str(tmp_path / name) for name in ("a.json", "b.json", "a[1].json"))
    assert find_files([a, f"{tmp_path}/[ab].json", f"{tmp_path}/./a.json", odd]) == \
        [f"{tmp_path}/./a.json", b, odd]
    with pytest.raises(FileNotFoundError, match="none.json: no such file: run prepare.py"):
        find_files([a, f"{tmp_path}/none.json"])


def test_scored_rows_are_not_tuned_on(capsys):
    def record(text):
        return {"instruction": "Say it.", "input": text, "output": "x"}

    test = [record("AACGTTTG"), record("prose"), {"instruction": "Sing.", "input": "", "output": "x"}]
    train = [record("CAAACGTT"), record("AACGTTTG"), record("prose"), record("AACGTTTGA"),
             {"instruction": "Sing.", "input": "", "output": "y"}, {"instruction": "Talk.", "input": "", "output": "y"}]
    assert without_leaks(train, test) == [train[3], train[5]]
    assert "4 of 6 rows are in eval_tasks too" in capsys.readouterr().out


# -- rows

def test_rows_end_in_end_of_text(tok):
    row = encode_rows(LETTERS[:1], tok, 200, 190)[0]
    assert (row.task, row.instruction) == ("letters", "Which letter?")
    assert tok.decode(row.prompt) == alpaca_prompt("Which letter?", "a")
    assert tok.decode(row.response[:-1]) == "yes" and row.response[-1] == tok.eot


def test_long_inputs_are_cut_never_the_answer(tok, capsys):
    long = [LETTERS[0] | {"input": "ab c, " * 500, "output": "yes, no"},
            LETTERS[0] | {"input": "ACGT" * 2500},
            LETTERS[0] | {"instruction": "Which letter?" * 500, "input": ""},
            LETTERS[0] | {"output": "yes, " * 40}]
    rows = encode_rows(LETTERS[:1] + long, tok, 100, 90)
    for r, row in zip(long[:2], rows[1:3]):
        assert len(row.prompt) == 90        # whatever its answer
        kept = tok.decode(row.prompt).split("### Input:\n")[1].split("\n\n### Response:")[0]
        assert r["input"].startswith(kept) and len(kept) > 20
        assert tok.decode(row.prompt).endswith("### Response:\n")
        assert tok.decode(row.response[:-1]) == r["output"]
    assert rows[3] is rows[4] is None
    printed = capsys.readouterr().out
    assert "2 of 5 inputs were cut" in printed and "2 of 5 records do not fit" in printed
