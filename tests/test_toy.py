"""The toy world: what is in it, that it does not leak, and that its files are a user's files."""
import json
import os
import re
import subprocess
import sys
import tomllib
from collections import Counter

import pytest

import config
import prepare
from conftest import listing
from dna import toy as toy_world
from dna.read import read_alpaca, read_dna, reverse_complement

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(config.__file__)))


@pytest.fixture
def few_genes(monkeypatch):
    monkeypatch.setattr(toy_world, "GENES", 30)
    monkeypatch.setattr(toy_world, "TEST_GENES", 5)
    monkeypatch.setattr(toy_world, "python_prose", lambda: ["The cell divides."] * 3)


def test_tasks(toy):
    tasks = {}
    for name in os.listdir(f"{toy}/data/tasks"):
        if name.endswith(".json"):
            task, split, _ = name.split(".")
            tasks[task, split] = read_alpaca(f"{toy}/data/tasks/{name}")
    assert sorted(tasks) == [(t, s) for t in sorted(toy_world.TASKS) for s in ("test", "train")]
    for (task, _), examples in tasks.items():    # all labels are equally frequent
        counts = Counter(example["output"] for example in examples)
        assert len(set(counts.values())) == 1 and set(counts) == set(examples[0]["choices"])
        bases, asks, words = toy_world.TASKS[task]
        assert {len(example["input"]) for example in examples} == {bases}
        assert examples[0]["choices"] == words and asks in examples[0]["instruction"]
        assert "either_strand" not in examples[0]


def test_scored_rows_are_asked_in_unseen_words_too(toy):
    """By the general wording that no training row has, and nothing else is another"""
    for task in toy_world.TASKS:
        rows, again, train = (read_alpaca(f"{toy}/data/tasks/{file}") for file in (
            f"{task}.test.json", f"unseen/{task}.test.json", f"{task}.train.json"))
        unseen = {example["instruction"] for example in again}
        assert len(unseen) == 1 and not unseen & {example["instruction"] for example in train}
        assert [row | {"instruction": ""} for row in rows] == [row | {"instruction": ""} for row in again]


def test_motifs(toy):
    for example in read_alpaca(f"{toy}/data/tasks/splice.train.json"):
        site = {"Donor Sites": example["input"][30:32] == "GT",
                "Acceptor Sites": example["input"][28:30] == "AG"}
        assert site.get(example["output"], True)
    for example in read_alpaca(f"{toy}/data/tasks/core_promoter.train.json"):
        if example["output"] == "promoter":
            assert example["input"][9:15] in ("CTATAA", "GTATAA", "CTATAT", "GTATAT")


def test_no_leaks(toy):
    """No 40 bases of a test sequence occur in a training sequence or in the pretraining genome, on
    either strand."""
    def windows(sequence):
        return {sequence[i:i + 40] for i in range(len(sequence) - 39)}

    training = list(read_dna(f"{toy}/data/raw/genome.fa", Counter()))
    testing = set()
    for name in os.listdir(f"{toy}/data/tasks"):
        if name.endswith(".train.json"):
            training += [example["input"] for example in read_alpaca(f"{toy}/data/tasks/{name}")]
        elif name.endswith(".json"):
            for example in read_alpaca(f"{toy}/data/tasks/{name}"):
                testing |= windows(example["input"]) | windows(reverse_complement(example["input"]))
    assert len(testing) > 1000 and not any(windows(s) & testing for s in training)


def test_same_seed_same_files(few_genes, tmp_path):
    for folder, seed in (("a", 1), ("b", 1), ("c", 2)):
        toy_world.files(f"{tmp_path}/{folder}", seed)
    a, b, c = ([listing(tmp_path / folder)[path] for path in sorted(listing(tmp_path / folder))]
               for folder in "abc")
    assert a == b and a != c and len(a) == len(c) == 14


def test_files_are_made_once(few_genes, tmp_path):
    """A student may change them; those of another seed are not taken for them."""
    folder = f"{tmp_path}/raw"
    assert toy_world.files(folder, 1) == {
        "dna": (f"{folder}/genome.fa",), "english": (f"{folder}/english.txt",),
        "tasks": tuple(f"{folder}/{task}" for task in toy_world.TASKS)}
    with open(f"{folder}/english.txt", "a") as f:
        f.write("\nMy own line.\n")
    toy_world.files(folder, 1)
    assert open(f"{folder}/english.txt").read().endswith("My own line.\n")
    with pytest.raises(ValueError, match="raw: not the toy world of seed 2: move it away"):
        toy_world.files(folder, 2)


def test_files_of_others_are_left_alone(few_genes, tmp_path):
    os.makedirs(tmp_path / "data/raw")
    (tmp_path / "data/raw/genome.fa").write_text(">mine\nACGT\n")
    before = listing(tmp_path)
    with pytest.raises(ValueError, match="raw: not the toy world of seed 1337"):
        prepare.main([f"--data_dir={tmp_path}/data"])
    assert listing(tmp_path) == before


def test_unfinished_files_are_made_again(few_genes, tmp_path, monkeypatch):
    def stop(*args):
        raise KeyboardInterrupt
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(toy_world, "python_prose", stop)
        toy_world.files(f"{tmp_path}/raw", 1)
    toy_world.files(f"{tmp_path}/raw", 1)
    assert os.path.exists(f"{tmp_path}/raw/english.txt")


def test_preset_names_the_files(few_genes, tmp_path):
    """config/toy.toml shows, as a comment, what `prepare.py` without arguments reads."""
    with open(f"{ROOT}/config/toy.toml", encoding="utf-8") as f:
        text = re.sub(r"(?m)^#(?= \w+ = |  +\")", "", f.read())
    section = tomllib.loads(text)["prepare"]
    named = {key: tuple(section[key]) for key in ("dna", "english", "tasks")}
    os.chdir(tmp_path)
    assert named == toy_world.files("data/toy/raw", section["seed"])


def test_as_a_command(tmp_path):
    done = subprocess.run([sys.executable, "-m", "dna.toy"], cwd=tmp_path, text=True,
                          capture_output=True, env=os.environ | {"PYTHONPATH": ROOT})
    assert done.returncode == 0, done.stderr
    assert done.stdout == "wrote data/toy/raw; next: python prepare.py\n"
    with open(tmp_path / "data/toy/raw/tf/task.json") as f:
        assert json.load(f)["labels"]["1"] == "Binding Sites"
    with open(tmp_path / "data/toy/raw/genome.fa") as f:
        assert f.readline() == ">toy_contig_1 invented by dna/toy.py with seed 1337\n"
