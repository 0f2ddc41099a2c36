"""Holding out, token bins, tasks, leaks, what is replaced, and what to run next."""
import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter

import numpy as np
import pytest

import prepare
from bpe import Tokenizer, to_json
from conftest import example, fasta, listing, merge, random_dna, some_rows, table, write
from dna import tasks
from dna.read import read_alpaca, reverse_complement
from prepare import PrepareConfig, documents, reservoir_sample


OWN = os.path.join(os.path.dirname(prepare.config.__file__), "own.toml")


def read_tasks(*paths, **keys):
    return prepare.read_tasks(PrepareConfig(tasks=tuple(map(str, paths)), **keys))


def documents_of(data_dir):
    """-> {name of the bin: its documents}, read back by meta.json"""
    meta = json.loads((data_dir / "meta.json").read_text())
    tok = Tokenizer.load(data_dir / "tokenizer.json", meta["tokenizer_sha256"])
    found = {}
    for name, b in meta["bins"].items():
        ids = np.fromfile(data_dir / name, dtype=meta["dtype"])
        assert len(ids) == b["tokens"]
        edges = np.flatnonzero(ids == tok.eot)
        assert len(ids) == 0 or ids[0] == ids[-1] == tok.eot
        found[name] = [tok.decode(ids[a + 1:z]) for a, z in zip(edges, edges[1:])]
        assert len(found[name]) == b["documents"]
    return found, meta["bins"]


# -- holding out

def test_hold_out_is_in_stretches(tmp_path):
    """Every document is in training or held out; held-out ones follow one another."""
    records = [random_dna(500, seed) for seed in range(1000)]
    path = fasta(tmp_path / "x.fa", records)
    docs = list(documents(PrepareConfig(dna=(path,), val_fraction=0.1)))
    assert [doc.text for doc in docs] == records
    held_out = [doc.held_out for doc in docs]
    assert sum(held_out) == 80      # 2 stretches of 20,000 bases in 500,000, 40 records each
    assert sum(a != b for a, b in zip(held_out, held_out[1:])) == 4


@pytest.mark.parametrize("width", [60, 10 ** 9])
def test_long_records_are_held_out_too(tmp_path, width):
    """A chromosome is one record: its held-out share is right all the same."""
    dna = random_dna(1000) * 3000
    path = write(tmp_path / "x.fa", ">chr\n" + "\n".join(
        dna[i:i + width] for i in range(0, len(dna), width)) + "\n")
    docs = list(documents(PrepareConfig(dna=(path,), val_fraction=0.02)))
    held_out = sum(len(doc.text) for doc in docs if doc.held_out)
    assert 0.01 < held_out / len(dna) < 0.03


@pytest.mark.parametrize("bases,val_fraction,length,share", [
    (5386, 0.02, 1000, 0.18), (2000, 0.02, 1000, 0.5), (5386, 0.5, 2693, 0.5), (48_502, 0.1, 4850, 0.1),
    (600_000, 0.02, 12_000, 0.02), (999_999, 0.02, 19_999, 0.02), (1_000_000, 0.02, 20_000, 0.02)])
def test_small_genomes_are_held_out_too(tmp_path, bases, val_fraction, length, share):
    """phiX174 has 5,386 bases, in one record. Of a million bases or more nothing has changed."""
    dna = random_dna(bases)
    path = fasta(tmp_path / "x.fa", [dna])
    docs = list(documents(PrepareConfig(dna=(path,), val_fraction=val_fraction)))
    assert "".join(doc.text for doc in docs) == dna
    held_out = sum(len(doc.text) for doc in docs if doc.held_out)
    assert abs(held_out - length) <= 16_000 - length % 16_000 and held_out / bases == pytest.approx(share, abs=0.02)
    assert max(len(doc.text) for doc in docs) <= length


def test_large_genomes_are_held_out_as_ever(tmp_path):
    path = fasta(tmp_path / "x.fa", [random_dna(150, i) * 10 for i in range(2000)])
    docs = list(documents(PrepareConfig(dna=(path,), val_fraction=0.02)))
    begins = np.cumsum([0] + [len(doc.text) for doc in docs])[:-1]
    assert [doc.held_out for doc in docs] == [begin // 20_000 % 50 == 25 for begin in begins]


def test_what_was_read_is_reported(tmp_path, capsys):
    path = write(tmp_path / "x.fa", ">a\n" + "ACGTACGTAC" * 300 + "\nNNACRGT\n>b\nAC--GT\n")
    list(documents(PrepareConfig(dna=(path,)), report=True))
    name, counts = capsys.readouterr().out.strip().split(": ")
    assert name == path and set(counts.split(", ")) == {
        "2 records", "1 documents", "3,000 bases", "2 N", "1 other ambiguous letters",
        "8 bases in stretches under 8", "2 gaps"}


def test_reservoir_sample():
    docs = [str(i) * 10 for i in range(1000)]
    sample = reservoir_sample(iter(docs), 2000, np.random.default_rng(0))
    assert 1900 <= sum(map(len, sample)) <= 2000
    assert sample == [d for d in docs if d in set(sample)]
    assert 300 < np.mean([docs.index(d) for d in sample]) < 700
    assert reservoir_sample(iter(docs), 10 ** 9, np.random.default_rng(0)) == docs


# -- bins

def test_bins_hold_the_documents(tmp_path):
    genome = [random_dna(3000, seed) for seed in range(40)]
    prose = [f"Paragraph {i} says no more than {i * i}." for i in range(4000)]
    dna, text = fasta(tmp_path / "g.fa", genome), write(tmp_path / "e.txt", "\n\n".join(prose))
    prepare.main([f"--dna={dna}", f"--english={text}", f"--data_dir={tmp_path}/data",
                  "--vocab_size=300", "--val_fraction=0.25"])
    found, bins = documents_of(tmp_path / "data")
    assert sum(map(len, found["val_dna.bin"])) == bins["val_dna.bin"]["bases"]
    assert sum(map(len, found["val_english.bin"])) == bins["val_english.bin"]["bytes"]
    assert bins["train.bin"]["bases"] + bins["val_dna.bin"]["bases"] == 120_000
    assert sorted(sum(found.values(), [])) == sorted(genome + prose)
    assert set(found["val_dna.bin"]) <= set(genome) and set(found["val_english.bin"]) <= set(prose)


def test_repeated_documents_are_on_one_side(tmp_path, capsys):
    """The same sequences in two files, on the other strand and in longer lines, and repeated prose:
    what is held out is not trained on."""
    genome = [random_dna(30_000, seed) for seed in range(12)]
    one = fasta(tmp_path / "one.fa", genome)
    two = fasta(tmp_path / "two.fa", ["\n".join(s[i:i + 70] for i in range(0, len(s), 70))
                                      for s in genome[6:] + genome[:6]])
    three = fasta(tmp_path / "three.fa", [reverse_complement(s[:16_000]) for s in genome])
    prose = [f"Gene {i} was read." for i in range(9000)]
    text = write(tmp_path / "e.txt", "\n\n".join(prose + prose[::-1]))
    prepare.main([f"--dna={one},{two},{three}", f"--english={text}", f"--data_dir={tmp_path}/data",
                  "--val_fraction=0.2", "--vocab_size=300"])
    found, bins = documents_of(tmp_path / "data")
    trained = set(found["train.bin"])
    held_out = set(found["val_dna.bin"] + found["val_english.bin"])
    other_strand = {reverse_complement(s) for s in found["val_dna.bin"]}
    assert len(found["val_dna.bin"]) >= 5 and len(found["val_english.bin"]) > 1000
    assert not trained & (held_out | other_strand)
    everything = {s[i:i + 16_000] for s in genome for i in (0, 16_000)} | set(prose)
    assert trained | held_out | other_strand >= everything
    lost = 12 * 2 * 2 + 12 + 18_000 - sum(map(len, found.values()))
    assert f"{lost:,} training documents equal a held-out one: left out" in capsys.readouterr().out


def test_large_vocabulary_needs_32_bits(monkeypatch):
    tok = Tokenizer.train([], 257)
    assert prepare.token_dtype(tok).str == "<u2"
    monkeypatch.setattr(Tokenizer, "__len__", lambda tok: 70_000)
    assert prepare.token_dtype(tok).str == "<u4"


def incomplete_tokenizer(path, missing):
    """A tokenizer.json without tokens for some bytes, such as the paper's"""
    file = to_json(Tokenizer.train([], 257))
    for character in missing:
        del file["model"]["vocab"][character]
    path.write_text(json.dumps(file))
    return str(path)


def test_a_tokenizer_that_loses_text_is_refused(tmp_path):
    tok = incomplete_tokenizer(tmp_path / "tok.json", "~")
    prose = [f"Cell {i} divides." for i in range(9000)]
    good, bad = (write(tmp_path / name, "\n\n".join(prose + [last]))
                 for name, last in (("good.txt", "End."), ("bad.txt", "Or do ~they?")))
    args = [f"--tokenizer={tok}", f"--data_dir={tmp_path}/data", "--val_fraction=0.2"]
    with pytest.raises(ValueError, match="bad.txt: the tokenizer loses '~'"):
        prepare.main([*args, f"--english={good},{bad}"])
    rows = [(random_dna(50, i), "~" if i % 2 else "x") for i in range(40)]
    write(tmp_path / "wavy.csv", "sequence,label\n" + "".join(f"{s},{x}\n" for s, x in rows))
    with pytest.raises(ValueError, match="wavy.train.json: the tokenizer loses '~'"):
        prepare.main([*args, f"--english={good}", f"--tasks={tmp_path}/wavy.csv"])
    assert not os.listdir(tmp_path / "data")
    prepare.main([*args, f"--english={good}"])
    assert sorted(sum(documents_of(tmp_path / "data")[0].values(), [])) == sorted(prose + ["End."])


def test_text_that_only_repeats(tmp_path):
    path = write(tmp_path / "e.txt", "Cells divide.\n\n" * 9000)
    with pytest.raises(ValueError, match="nothing is left to train on: give more text"):
        prepare.main([f"--english={path}", f"--data_dir={tmp_path}/data", "--val_fraction=0.2"])


# -- tasks

def test_tasks_as_text(tmp_path):
    """The training sequences, each once, are documents; those of scored rows are not."""
    train, dev = some_rows(120), some_rows(20, seed=7)
    folder = table(tmp_path / "task", {"train": train + train[:9], "dev": dev})
    prepare.main([f"--dna={fasta(tmp_path / 'g.fa', [random_dna(20_000, i) for i in range(9)])}",
                  f"--tasks={folder}", "--tasks_as_text", f"--data_dir={tmp_path / 'data'}",
                  "--vocab_size=300", "--val_fraction=0.25"])
    text = Counter(doc for docs in documents_of(tmp_path / "data")[0].values()
                   for doc in docs)
    assert all(text[dna] == 1 for dna, _ in train) and not any(text[dna] for dna, _ in dev)
    assert sorted(os.listdir(tmp_path / "data" / "tasks")) == [
        "sequences.fa", "task.dev.json", "task.train.json", "unseen"]


def test_gue_tasks(tmp_path):
    a, b, c, d, e, f = (random_dna(70, seed) for seed in range(6))
    table(tmp_path / "GUE/splice/reconstructed",
          {"train": [(a, 0), (b, 1), (f, 2)], "dev": [(c.lower(), 2)]})
    table(tmp_path / "GUE/tf/3", {"train": [(a, 0), (b, 1)]})
    table(tmp_path / "GUE/mine/enhancers", {"test": [(d, "weak"), (e, "strong")]})
    prepare.main([f"--tasks={tmp_path}/GUE", f"--data_dir={tmp_path}/data"])
    folder = tmp_path / "data/tasks"
    assert sorted(os.listdir(folder / "unseen")) == ["enhancers.test.json", "splice_reconstructed.dev.json"]
    files = {name: read_alpaca(str(folder / name)) for name in os.listdir(folder) if name != "unseen"}
    assert sorted(files) == ["enhancers.test.json", "splice_reconstructed.dev.json",
                             "splice_reconstructed.train.json", "tf_3.train.json"]
    splice = files["splice_reconstructed.train.json"] + files["splice_reconstructed.dev.json"]
    assert [r["output"] for r in splice] == ["Acceptor Sites", "Donor Sites", "Non-Splice Sites",
                                             "Non-Splice Sites"]
    assert [r["input"] for r in splice] == [a, b, f, c]
    assert splice[0]["task"] == "splice_reconstructed" and "either_strand" not in splice[0]
    assert all("human transcription factor 3" in r["instruction"] for r in files["tf_3.train.json"])
    assert files["tf_3.train.json"][1]["choices"] == ["Background Sequences", "Binding Sites"]
    assert files["tf_3.train.json"][1]["either_strand"] is True
    assert files["enhancers.test.json"][0]["choices"] == ["strong", "weak"]


def test_a_line_says_how_each_task_is_read(tmp_path, capsys):
    path = table(tmp_path / "prom_300_all", {"train": some_rows(30), "test": some_rows(4, 1)})
    read_tasks(path)
    assert capsys.readouterr().out == ("prom_300_all: promoter detection; 0 = Non-promoter (17 rows), "
                                       "1 = promoter (17 rows); 30 train, 4 test\n")


def test_a_task_json_is_suggested(tmp_path, capsys):
    """What is printed can be written as it is, and is then read; one of a wrong name is not overlooked."""
    path = write(tmp_path / "enhancers.csv", "sequence,label\n" + "".join(
        f"{s},{x}\n" for s, x in some_rows(40)))
    write(tmp_path / "task.json", "{}")
    read_tasks(path)
    ignored, about, hint = capsys.readouterr().out.splitlines()
    assert ignored == f"{tmp_path}/task.json: ignored: name it {tmp_path}/enhancers.task.json"
    assert about == "enhancers: enhancers; 0 = 0 (20 rows), 1 = 1 (20 rows); 36 train, 4 dev"
    file, text = re.search(r": to give its labels words, write (.*?): (.*)", hint).groups()
    assert file == f"{tmp_path}/enhancers.task.json"
    write(tmp_path / "enhancers.task.json", text)
    assert read_tasks(path)["enhancers.dev.json"][0]["choices"] == ["class 0", "class 1"]
    assert "0 = class 0 (20 rows), 1 = class 1 (20 rows); 36 train, 4 dev\n" in capsys.readouterr().out

    # in a folder it is the other way round, and labels that are words need none
    folder = table(tmp_path / "x", {"train": [(s, "ab"[x]) for s, x in some_rows(9)]})
    write(tmp_path / "x.task.json", "{}")
    read_tasks(folder)
    ignored, about = capsys.readouterr().out.splitlines()
    assert ignored == f"{tmp_path}/x.task.json: ignored: name it {tmp_path}/x/task.json"


def without_instructions(examples):
    return [{key: value for key, value in e.items() if key != "instruction"} for e in examples]


def test_wordings(tmp_path):
    """Training rows have the known ones, scored rows the paper's, and in a file apart the unseen ones."""
    rows = some_rows(400)
    path = table(tmp_path / "prom_300_all", {"train": rows[:300], "dev": rows[300:350], "test": rows[350:]})
    files = read_tasks(path, seed=3)
    asked = {name: Counter(r["instruction"] for r in examples) for name, examples in files.items()}
    known, unseen = tasks.wordings(tasks.describe(path, "", []))
    assert sorted(files) == ["prom_300_all.dev.json", "prom_300_all.test.json", "prom_300_all.train.json",
                             "unseen/prom_300_all.dev.json", "unseen/prom_300_all.test.json"]
    train = asked["prom_300_all.train.json"]
    assert set(train) == set(known) and min(train.values()) > 10
    for split in ("dev", "test"):
        name = f"prom_300_all.{split}.json"
        assert list(asked[name]) == [
            "Determine promoter detection of following dna sequence, The result will be one of the "
            "following: Non-promoter, promoter."]
        again = asked[f"unseen/{name}"]
        assert set(again) == set(unseen) and min(again.values()) > 10 and not set(again) & set(train)
        assert without_instructions(files[f"unseen/{name}"]) == without_instructions(files[name])
    assert read_tasks(path, seed=3) == files != read_tasks(path, seed=4)


@pytest.mark.parametrize("folder,name,what,words,either_strand", [
    ("GUE/prom/prom_300_tata", "prom_300_tata", "TATA promoter detection", tasks.PROMOTER, False),
    ("prom_core_all", "prom_core_all", "core promoter detection", tasks.PROMOTER, False),
    ("GUE/mouse/2", "mouse_2", "mouse transcription factor 2 binding site detection",
     tasks.FACTOR, True),
    ("GUE/EMP/H3K4me1", "EMP_H3K4me1", "H3K4me1 histone mark detection", ["No Mark", "Mark"], True),
    ("GUE/virus/covid", "virus_covid", "virus variant detection", tasks.VARIANTS, False),
    # names that only resemble GUE's are no GUE tasks
    ("mine/scores", "scores", "scores", ["0", "1"], False),
    ("mine/conservation_score", "conservation_score", "conservation score", ["0", "1"], False),
    ("mine/compromised", "compromised", "compromised", ["0", "1"], False),
    ("mine/my_gtf", "my_gtf", "my gtf", ["0", "1"], False),
    ("TEMP/x", "x", "x", ["0", "1"], False),
    ("tf/5", "tf_5", "tf 5", ["0", "1"], False),
    ("mine/covid", "covid", "covid", ["0", "1"], False),
    ("mine/promoter", "promoter", "promoter", ["0", "1"], False),
    ("splice", "splice", "splice", ["0", "1"], False),
])
def test_task_names(tmp_path, folder, name, what, words, either_strand):
    path = table(tmp_path / folder, {"train": some_rows(10)})
    (file, examples), = read_tasks(path).items()
    assert file == f"{name}.train.json"
    assert examples[0]["task"] == name and examples[0]["choices"] == words
    assert [r["output"] for r in examples] == words[:2] * 5
    known = tasks.wordings(tasks.describe(path, "", ["0", "1"]))[0]
    assert all(r["instruction"] in known for r in examples)
    assert known[0] == (f"Determine {what} of following dna sequence, The result will be one of the "
                        f"following: {', '.join(words)}.")
    assert all(r.get("either_strand", False) == either_strand for r in examples)


def test_task_json_names_the_task(tmp_path):
    about = {"asks": "enhancer strength", "labels": {"0": "weak", "1": "strong", "2": "super"},
             "either_strand": True}
    folder = table(tmp_path / "tf/3", {"train": some_rows(10)})
    write(tmp_path / "tf/3/task.json", json.dumps(about))
    single = write(tmp_path / "enhancers.csv", "sequence,label\n" + "".join(
        f"{s},{x}.0\n" for s, x in some_rows(40, 1)))
    write(tmp_path / "enhancers.task.json", json.dumps(about))
    write(tmp_path / "enhancers/task.json", "not this one")
    files = read_tasks(folder, single)
    assert sorted(files) == ["enhancers.dev.json", "enhancers.train.json", "tf_3.train.json",
                             "unseen/enhancers.dev.json"]
    for examples in files.values():
        assert examples[0]["choices"] == ["weak", "strong", "super"] and examples[0]["either_strand"]
        assert {r["output"] for r in examples} == {"weak", "strong"}
        assert all("enhancer strength" in r["instruction"] for r in examples)
    write(tmp_path / "tf/3/task.json", '{"asks": "strength", "labels": {"0": "weak"}}')
    with pytest.raises(ValueError, match=r"train.csv: line \d+: the label '1' is none of 0: name all "
                                         "labels in .*tf/3/task.json"):
        read_tasks(folder)
    write(tmp_path / "tf/3/task.json", '{"asks": "strength"}')
    assert read_tasks(folder)["tf_3.train.json"][0]["choices"] == ["0", "1"]


def test_labels_of_gue_are_known(tmp_path):
    path = table(tmp_path / "prom_300_all", {"train": [(random_dna(50), 0), (random_dna(50, 1), 7)]})
    with pytest.raises(ValueError, match="line 3: the label '7' is none of 0, 1: name all labels in"):
        read_tasks(path)


def test_one_table_is_split(tmp_path):
    path = write(tmp_path / "enhancers.tsv", "id\tsequence\tlabel\n" + "".join(
        f"{i}\t{random_dna(40, i)}\t{'strong' if i % 2 else 'weak'}\n" for i in range(100)))
    files = read_tasks(path)
    assert {name: len(examples) for name, examples in files.items()} == {
        "enhancers.train.json": 90, "enhancers.dev.json": 10, "unseen/enhancers.dev.json": 10}
    assert files["enhancers.train.json"][0]["task"] == "enhancers"
    assert len({r["input"] for examples in files.values() for r in examples}) == 100
    few = write(tmp_path / "few.csv", "sequence,label\n" + "ACGT,0\nACGA,1\n" * 9)
    with pytest.raises(ValueError, match="18 rows are too few"):
        read_tasks(few)


def test_splits_that_do_not_agree(tmp_path):
    path = table(tmp_path / "x", {"train": [(random_dna(50, i), i) for i in range(2)],
                                  "test": [(random_dna(50, 9), "one")]})
    with pytest.raises(ValueError, match="test.csv: line 2: no training row has label 'one'"):
        read_tasks(path)


def test_two_tasks_of_one_name(tmp_path):
    a, b = (table(tmp_path / folder / "x", {"train": some_rows(10)}) for folder in "ab")
    with pytest.raises(ValueError, match="b/x: a second task named x.train.json: rename one"):
        read_tasks(a, b)


def test_a_task_named_like_a_split(tmp_path, capsys):
    """Its training rows are not scored rows."""
    rows = some_rows(40)
    for name in ("test", "val", "trial"):
        path = table(tmp_path / name, {"train": rows, "test": rows[:10]})
        files = read_tasks(path)
        assert len(files[f"{name}.train.json"]) == 30 and len(files[f"{name}.test.json"]) == 10
        assert f"{name}.train.json: 10 of 40 rows overlap with a scored row" in capsys.readouterr().out


def test_rows_shared_with_validation_are_left_out(tmp_path):
    rows = some_rows(40)
    files = read_tasks(table(tmp_path / "x", {"train": rows, "validation": rows[:10]}))
    assert {name: len(examples) for name, examples in files.items()} == {
        "x.train.json": 30, "x.dev.json": 10, "unseen/x.dev.json": 10}


def test_sequences_with_several_labels_are_counted(tmp_path, capsys):
    rows = some_rows(40)
    read_tasks(table(tmp_path / "x", {"train": rows + [(s, 1 - x) for s, x in rows[:3]] + rows[:5]}))
    assert "x: 3 sequences have more than one label" in capsys.readouterr().out


def test_sixty_classes(tmp_path):
    rows = [(random_dna(50, i), f"family {i % 60}") for i in range(1800)]
    files = read_tasks(table(tmp_path / "x", {"train": rows}))
    assert len(files["x.train.json"][0]["choices"]) == 60


# -- leaks

def test_overlapping_rows_are_left_out_of_training(tmp_path, capsys):
    """The scored rows of one task count for the others too."""
    a, b, c, d, e = (random_dna(60, seed) for seed in range(5))
    x = table(tmp_path / "x", {"train": [(a, 0), (b, 1)], "test": [(c, 0)]})
    y = table(tmp_path / "y", {"train": [(a[5:40], 0), (reverse_complement(c)[3:30], 1), (c + d, 0)],
                               "dev": [(d, 1)]})
    files = read_tasks(x, y)
    assert "y.train.json: 2 of 3 rows overlap with a scored row: left out" in capsys.readouterr().out
    assert [r["input"] for r in files["y.train.json"]] == [a[5:40]]
    assert len(files["x.train.json"]) == 2
    z = table(tmp_path / "z", {"train": [(e, 0), (c, 1)], "test": [(e + a, 0)]})
    with pytest.raises(ValueError, match="z.train.json: all rows overlap with scored rows"):
        read_tasks(x, z)


def test_alpaca_files_are_searched_too(tmp_path, capsys):
    a, b, c = (random_dna(60, seed) for seed in range(3))
    x = table(tmp_path / "x", {"test": [(a, 0), (c, 1)]})
    mine = write(tmp_path / "mine.jsonl", "".join(
        json.dumps(example("Is it a gene?", s)) + "\n" for s in (a.lower(), b, "Hello")))
    chat = write(tmp_path / "chat.test.json", json.dumps([example("Is it a gene?", "Hello")]))
    files = read_tasks(mine, x, chat)
    assert [r["input"] for r in files["mine.json"]] == [b]
    assert "mine.json: 2 of 3 rows overlap with a scored row: left out" in capsys.readouterr().out
    assert sorted(files) == ["chat.test.json", "mine.json", "unseen/x.test.json", "x.test.json"]


def test_an_earlier_runs_files_are_read_as_they_are(tmp_path, toy):
    """Tuning files and scored files keep their roles."""
    again = [f"{toy}/data/tasks/promoter.{split}.json" for split in ("train", "test")]
    prepare.main([f"--tasks={again[0]},{again[1]}", f"--data_dir={tmp_path}/data"])
    for path in again:
        assert read_alpaca(path) == read_alpaca(f"{tmp_path}/data/tasks/{os.path.basename(path)}")


@pytest.mark.parametrize("link", [False, True])
def test_a_path_given_twice(tmp_path, link):
    path = fasta(tmp_path / "g.fa", [random_dna(50_000)])
    other = str(tmp_path / "link.fa") if link else str(tmp_path / "." / "g.fa")
    if link:
        os.symlink(path, other)
    with pytest.raises(ValueError, match="g.fa: given twice|link.fa: given twice"):
        prepare.main([f"--dna={path},{other}", f"--data_dir={tmp_path}/data"])


# -- nothing half-written, nothing of others replaced

def test_failure_leaves_the_folder_as_it_was(toy, tmp_path):
    before, names = listing(f"{toy}/data"), sorted(os.listdir(f"{toy}/data"))
    protein = write(tmp_path / "p.fa", ">ok\n" + random_dna(50_000) + "\n>p\nMKLV\n")
    tiny = write(tmp_path / "t.fa", ">ok\n" + random_dna(500) + "\n")
    for args, error in [([f"--dna={protein}"], "p.fa: line 4: 'L' is no nucleotide"),
                        ([f"--dna={tmp_path}/none.fa"], "none.fa: no such file"),
                        ([f"--dna={tmp_path}"], f"{tmp_path}: a folder or a pipe, not a file"),
                        (["--english=/dev/null"], "/dev/null: a folder or a pipe"),
                        (["--data_dir="], "data_dir is empty"),
                        ([f"--tasks={tmp_path}"], f"{tmp_path}: no task"),
                        ([f"--tasks={tiny}"], "t.fa: no task: give a .csv"),
                        ([f"--dna={tiny}"], "t.fa: 500 characters are too few to hold some out: give 2,000"),
                        (["--vocab_size=100"], "vocab_size=100 is too small"),
                        (["--val_fraction=0.7"], "val_fraction=0.7 is more than 0.5"),
                        (["--split=mixt"], "split=mixt is not one of"),
                        ([f"--dna={tiny}", "--tokenizer=none.json"], "none.json")]:
        with pytest.raises((ValueError, OSError), match=error):
            prepare.main(merge(f"--data_dir={toy}/data", *args))
        assert listing(f"{toy}/data") == before and sorted(os.listdir(f"{toy}/data")) == names


def test_the_temporary_folder_is_inside(tmp_path):
    """data_dir may be a mount point, from which nothing can be moved to another folder in one step."""
    with pytest.raises(KeyboardInterrupt), prepare.staged(tmp_path / "data") as folder:
        assert os.path.dirname(folder) == str(tmp_path / "data")
        assert os.listdir(tmp_path) == ["data"]
        raise KeyboardInterrupt
    assert os.listdir(tmp_path / "data") == []


def test_sigterm_leaves_nothing_behind(tmp_path):
    path = fasta(tmp_path / "x.fa", [random_dna(150, i) * 10 for i in range(2000)])
    data = tmp_path / "data"
    run = subprocess.Popen([sys.executable, prepare.__file__, f"--dna={path}", f"--data_dir={data}"],
                           stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    while not list(data.glob("preparing.tmp/tokenizer.json")):
        assert run.poll() is None
        time.sleep(0.01)
    run.terminate()
    assert run.wait() == 128 + signal.SIGTERM
    assert os.listdir(data) == []


def test_a_second_run_replaces_the_first(tmp_path):
    """The tasks folder as a whole, with the scores cached in it; what the run does not write stays."""
    x, y = (table(tmp_path / name, {"train": some_rows(10)}) for name in "xy")
    data = tmp_path / "mine"
    prepare.main([f"--tasks={x}", f"--data_dir={data}"])
    write(data / "tasks/scores/kmer.json", "{}")
    write(data / "notes.txt", "my notes")
    prepare.main([f"--tasks={y}", f"--data_dir={data}"])
    assert sorted(os.listdir(data)) == ["meta.json", "notes.txt", "tasks"]
    assert os.listdir(data / "tasks") == ["y.train.json"]
    dna = fasta(tmp_path / "g.fa", [random_dna(1000, i) for i in range(300)])
    for seed in (1, 2):
        prepare.main([f"--dna={dna}", f"--data_dir={data}", f"--seed={seed}", "--val_fraction=0.2"])
    assert sorted(os.listdir(data)) == ["meta.json", "notes.txt", "tasks", "tokenizer.json",
                                        "train.bin", "val_dna.bin", "val_english.bin"]


def test_files_of_others_are_not_replaced(tmp_path):
    dna = fasta(tmp_path / "g.fa", [random_dna(1000, i) for i in range(300)])
    x = table(tmp_path / "x", {"train": some_rows(10)})
    write(tmp_path / "mine/tasks/notes.txt", "my notes")
    write(tmp_path / "other/tokenizer.json", "{}")
    write(tmp_path / "other/meta.txt", "")
    before = listing(tmp_path)
    for args, error in [(["mine", f"--tasks={x}"], "mine: tasks, but no meta.json: prepare.py did not"),
                        (["other", f"--dna={dna}"], "other: tokenizer.json, but no meta.json")]:
        with pytest.raises(ValueError, match=error):
            prepare.main([f"--data_dir={tmp_path}/{args[0]}", *args[1:]])
    assert listing(tmp_path) == before


def test_input_is_not_replaced(tmp_path):
    """Neither the tasks of a data_dir, nor the sequences that --tasks_as_text left beside them"""
    data = tmp_path / "data"
    x = table(tmp_path / "x", {"train": some_rows(40), "test": some_rows(8, 1)})
    prepare.main([f"--tasks={x}", "--tasks_as_text", f"--data_dir={data}", "--val_fraction=0.4"])
    before = listing(data)
    for arg in (f"--tasks={data}/tasks/x.train.json", f"--dna={data}/tasks/sequences.fa"):
        with pytest.raises(ValueError, match="is in .*data/tasks, which this run would replace: give another data_dir"):
            prepare.main([arg, f"--data_dir={data}"])
    assert listing(data) == before


def test_data_dir_is_a_file(tmp_path):
    x = table(tmp_path / "x", {"train": some_rows(40)})
    path = write(tmp_path / "mine.txt", "mine")
    with pytest.raises(ValueError, match="mine.txt: not a folder: give another data_dir"):
        prepare.main([f"--tasks={x}", f"--data_dir={path}"])


def test_two_runs_in_one_folder(tmp_path):
    x = table(tmp_path / "x", {"train": some_rows(40)})
    with prepare.staged(tmp_path / "data"), pytest.raises(ValueError, match="another run is writing to it"):
        prepare.main([f"--tasks={x}", f"--data_dir={tmp_path}/data"])
    assert os.listdir(tmp_path / "data") == []


def test_what_a_killed_run_leaves_is_removed(tmp_path):
    """Also where it was killed while its files were put in place: they are not somebody else's."""
    x = table(tmp_path / "x", {"train": some_rows(40)})
    data = tmp_path / "data"
    write(data / "preparing.tmp/tokenizer.json", "half")
    write(data / "train.bin", "of an earlier run")
    prepare.main([f"--tasks={x}", f"--data_dir={data}"])
    assert sorted(os.listdir(data)) == ["meta.json", "tasks", "train.bin"]


# -- what to run next

def last_line(capsys):
    line = capsys.readouterr().out.splitlines()[-1]
    return line[:line.index(";")], shlex.split(line[line.index("; next: ") + 8:])


def test_next_after_text(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    dna = fasta(tmp_path / "g.fa", [random_dna(1000, i) for i in range(300)])
    prepare.main([f"--dna={dna}", "--data_dir=data/my own", "--val_fraction=0.2"])
    assert last_line(capsys) == ("wrote data/my own", [
        "python", "train.py", "--data_dir=data/my own", "--out_dir=out/my own"])


def test_next_after_tasks(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    x = table(tmp_path / "x", {"train": some_rows(30), "dev": some_rows(4, 1), "test": some_rows(4, 2)})
    y = table(tmp_path / "y", {"train": some_rows(30, 3)})
    z = table(tmp_path / "z", {"test": some_rows(10, 4)})
    chat = write(tmp_path / "chat.json", json.dumps([example("Say yes.")]))
    tasks = "data/mine/tasks"
    own = os.path.relpath(OWN)
    for paths, command in [
            ([x, y], [own, f"--tasks={tasks}/*.train.json", "--out_dir=out/mine-instruct"]),
            ([y, chat], [own, f"--tasks={tasks}/*.train.json,{tasks}/chat.json", "--out_dir=out/mine-instruct"]),
            ([z], ["--init_from=models/laptop", "--epochs=0", f"--eval_tasks={tasks}/*.test.json",
                   "--out_dir=out/mine-instruct"])]:
        prepare.main([f"--tasks={','.join(paths)}", "--data_dir=data/mine"])
        assert last_line(capsys) == ("wrote data/mine", ["python", "instruct.py", *command])
    prepare.main([OWN, f"--tasks={x}"])
    assert last_line(capsys) == ("wrote data/own", ["python", "instruct.py", OWN])


def test_next_in_a_folder_with_special_characters(tmp_path, capsys, monkeypatch):
    """The patterns are quoted for the shell, and brackets in the folder's name are no pattern."""
    monkeypatch.chdir(tmp_path)
    x = table(tmp_path / "x", {"train": some_rows(30), "dev": some_rows(4, 1)})
    prepare.main([f"--tasks={x}", "--data_dir=data/a [b]"])
    *_, baseline = capsys.readouterr().out.splitlines()[:-1]
    assert shlex.split(baseline) == ["python", "-m", "tools.cnn", "data/a [b]/tasks"]
    prepare.main([f"--tasks={x}", "--data_dir=data/a [b]"])
    _, words = last_line(capsys)
    pattern, = [word.partition("=")[2] for word in words if word.startswith("--tasks=")]
    assert tasks.find_files([pattern]) == ["data/a [b]/tasks/x.train.json"]


def test_next_after_the_toy_world(tmp_path, capsys, monkeypatch, toy):
    """It is the next script's default, if it is where the next script looks for it."""
    monkeypatch.chdir(tmp_path)
    for folder, words in [("data/toy", ["python", "train.py"]),
                          ("data/t2", ["python", "train.py", "--data_dir=data/t2", "--out_dir=out/t2"])]:
        shutil.copytree(f"{toy}/data/raw", tmp_path / folder / "raw")
        monkeypatch.setattr(prepare.toy, "files", lambda raw, seed: {
            "dna": (f"{raw}/genome.fa",), "english": (f"{raw}/english.txt",), "tasks": ()})
        prepare.main([f"--data_dir={folder}", "--vocab_size=400", "--val_fraction=0.1"])
        assert last_line(capsys) == (f"wrote {folder}", words)
