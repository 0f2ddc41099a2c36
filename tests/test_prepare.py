"""Reading files, holding out, token bins, tasks, the toy world."""
import gzip
import json
import lzma
import os
import random
from collections import Counter

import numpy as np
import pytest

import prepare
from bpe import Tokenizer
from conftest import listing
from prepare import (PrepareConfig, documents, draw, read_alpaca, read_fasta, read_paragraphs,
                     reverse_complement)


def write(path, text):
    path.write_bytes(text.encode())
    return str(path)


def random_dna(n, seed=0):
    return "".join(random.Random(seed).choices("ACGT", k=n))


# -- FASTA

def test_fasta(tmp_path):
    """Several records, wrapped lines, lower case, N, other codes, RNA, Windows lines, an empty one"""
    path = write(tmp_path / "x.fa", ">one first\r\nACGTACGTac\r\ngtNNNNNACGTRTTTTTTTT\r\n\r\n"
                 ">two\r\n>three\r\nacguacguu\r\nACGT\r\n")
    seen = Counter()
    assert list(read_fasta(path, seen)) == [("one first", "ACGTACGTACGT"), ("one first", "TTTTTTTT"),
                                            ("three", "ACGTACGTTACGT")]
    assert seen == {"records": 3, "empty records": 1, "bases": 33, "N": 5,
                    "other ambiguous letters": 1, "bases in stretches under 8": 4}


@pytest.mark.parametrize("name,opener", [("x.fa.gz", gzip.open), ("x.fa.xz", lzma.open)])
def test_packed_fasta(tmp_path, name, opener):
    with opener(tmp_path / name, "wt") as f:
        f.write(">a\nACGTACGTAC\n")
    assert list(read_fasta(str(tmp_path / name))) == [("a", "ACGTACGTAC")]


@pytest.mark.parametrize("width", [61, 10 ** 9])
def test_long_records_come_in_blocks(tmp_path, width):
    dna = random_dna(350_000)
    path = write(tmp_path / "x.fa", ">chr\n" + "\n".join(
        dna[i:i + width] for i in range(0, len(dna), width)) + "\n")
    blocks = [text for _, text in read_fasta(path)]
    assert "".join(blocks) == dna
    assert max(map(len, blocks)) < 2 * prepare.BLOCK and len(blocks) >= 3


@pytest.mark.parametrize("text,message", [
    (">p\nMKVLAAGIVGLLLAQWERTY\n", "line 2: 'L' is no nucleotide: is this protein?"),
    ("ACGTACGT\n", "line 1: not FASTA"),
    ("", "an empty file"),
    ("\n \n", "an empty file"),
])
def test_fasta_refused(tmp_path, text, message):
    path = write(tmp_path / "x.fa", text)
    with pytest.raises(ValueError) as e:
        list(read_fasta(path))
    assert message in str(e.value) and path in str(e.value)


def test_damaged_files(tmp_path):
    whole = gzip.compress(b">a\n" + random_dna(9000).encode())
    (tmp_path / "x.fa.gz").write_bytes(whole[:1000])
    with pytest.raises(ValueError, match="x.fa.gz: damaged or cut short"):
        list(read_fasta(str(tmp_path / "x.fa.gz")))
    (tmp_path / "y.txt").write_bytes(b"caf\xe9 au lait\n")
    with pytest.raises(ValueError, match="y.txt: not UTF-8"):
        list(read_paragraphs(str(tmp_path / "y.txt")))


def test_reverse_complement():
    assert reverse_complement("AACGTT") == "AACGTT"
    assert reverse_complement("GATTACAN") == "NTGTAATC"
    assert reverse_complement("RYSWKMBDHV") == "BDHVKMWSRY"
    dna = random_dna(100)
    assert reverse_complement(reverse_complement(dna)) == dna


def test_paragraphs(tmp_path):
    path = write(tmp_path / "x.txt", "\n\none\r\ntwo\r\n\r\n \r\n\nthree \n")
    assert list(read_paragraphs(path)) == ["one\ntwo", "three"]


# -- holding out

def test_hold_out_is_in_stretches(tmp_path):
    """Every document is in training or held out; held-out ones follow one another."""
    records = [random_dna(500, seed) for seed in range(1000)]
    path = write(tmp_path / "x.fa", "".join(f">{i}\n{r}\n" for i, r in enumerate(records)))
    docs = list(documents(PrepareConfig(dna=[path], val_fraction=0.1)))
    assert [text for _, _, text in docs] == records
    held_out = [h for _, h, _ in docs]
    assert sum(held_out) == 80      # 2 stretches of 20,000 bases in 500,000, 40 records each
    assert sum(a != b for a, b in zip(held_out, held_out[1:])) == 4


@pytest.mark.parametrize("width", [60, 10 ** 9])
def test_long_records_are_held_out_too(tmp_path, width):
    """A chromosome is one record: its held-out share is right all the same."""
    dna = random_dna(1000) * 3000
    path = write(tmp_path / "x.fa", ">chr\n" + "\n".join(
        dna[i:i + width] for i in range(0, len(dna), width)) + "\n")
    docs = list(documents(PrepareConfig(dna=[path], val_fraction=0.02)))
    held_out = sum(len(text) for _, h, text in docs if h)
    assert 0.01 < held_out / len(dna) < 0.03


def test_draw():
    docs = [str(i) * 10 for i in range(1000)]
    sample = draw(iter(docs), 2000, np.random.default_rng(0))
    assert 1900 <= sum(map(len, sample)) <= 2000
    assert sample == [d for d in docs if d in set(sample)]
    assert 300 < np.mean([docs.index(d) for d in sample]) < 700
    assert draw(iter(docs), 10 ** 9, np.random.default_rng(0)) == docs


# -- bins

def test_bins_hold_the_documents(tmp_path):
    genome = [random_dna(3000, seed) for seed in range(40)]
    prose = [f"Paragraph {i} says no more than {i * i}." for i in range(4000)]
    fasta = write(tmp_path / "g.fa", "".join(f">{i}\n{r}\n" for i, r in enumerate(genome)))
    text = write(tmp_path / "e.txt", "\n\n".join(prose))
    out = tmp_path / "data"
    prepare.main([f"--dna={fasta}", f"--english={text}", f"--data_dir={out}", "--vocab_size=300",
                  "--val_fraction=0.25"])
    meta = json.loads((out / "meta.json").read_text())
    tok = Tokenizer.load(out / "tokenizer.json", meta["tokenizer_sha256"])
    found = {}
    for name, b in meta["bins"].items():
        ids = np.fromfile(out / name, dtype=meta["dtype"])
        assert len(ids) == b["tokens"] and ids[0] == ids[-1] == tok.eot
        edges = np.flatnonzero(ids == tok.eot)
        found[name] = [tok.decode(ids[a + 1:z]) for a, z in zip(edges, edges[1:])]
        assert len(found[name]) == b["documents"]
    assert sum(map(len, found["val_dna.bin"])) == meta["bins"]["val_dna.bin"]["bases"]
    assert sum(map(len, found["val_english.bin"])) == meta["bins"]["val_english.bin"]["bytes"]
    assert meta["bins"]["train.bin"]["bases"] + meta["bins"]["val_dna.bin"]["bases"] == 120_000
    assert sorted(sum(found.values(), [])) == sorted(genome + prose)
    assert set(found["val_dna.bin"]) <= set(genome) and set(found["val_english.bin"]) <= set(prose)


@pytest.mark.parametrize("modality, size, other", [("dna", "bases", "bytes"), ("english", "bytes", "bases")])
def test_train_on_one_modality(toy, tmp_path, modality, size, other):
    """The rest is as ever: the vocabulary, what is held out, the tasks."""
    with open(f"{toy}/data/meta.json") as f:
        both = json.load(f)
    raw = f"{toy}/data/raw"
    prepare.main([f"--dna={raw}/genome.fa", f"--english={raw}/english.txt", f"--tasks={raw}",
                  f"--data_dir={tmp_path}", "--vocab_size=400", "--val_fraction=0.1",
                  f"--train_on={modality}"])
    meta = json.loads((tmp_path / "meta.json").read_text())
    train = meta["bins"].pop("train.bin")
    before = both["bins"].pop("train.bin")
    assert meta == both and train[size] == before[size] and train[other] == 0
    assert sorted(listing(tmp_path / "tasks").values()) == sorted(listing(f"{toy}/data/tasks").values())


def test_large_vocabulary_needs_32_bits(tmp_path, monkeypatch):
    monkeypatch.setattr(Tokenizer, "__len__", lambda tok: 70_000)
    fasta = write(tmp_path / "g.fa", "".join(f">{i}\n{random_dna(5000, i)}\n" for i in range(20)))
    tok = Tokenizer.train(["ACGTACGTACGT"], 260)
    tok.save(tmp_path / "tokenizer.json")
    cfg = PrepareConfig(dna=[fasta], val_fraction=0.5)
    assert prepare.write_bins(cfg, tok, str(tmp_path))["dtype"] == "<u4"


# -- tasks

def gue(folder, splits):
    os.makedirs(folder)
    for split, rows in splits.items():
        with open(os.path.join(folder, f"{split}.csv"), "w") as f:
            f.write("sequence,label\n" + "".join(f"{s},{label}\n" for s, label in rows))


def test_gue_tasks(tmp_path):
    a, b, c, d, e = (random_dna(70, seed) for seed in range(5))
    gue(tmp_path / "GUE/splice/reconstructed", {"train": [(a, 0), (b, 1)], "dev": [(c.lower(), 2)]})
    gue(tmp_path / "GUE/tf/3", {"train": [(a, 0), (b, 1)]})
    gue(tmp_path / "GUE/mine/enhancers", {"test": [(d, "weak"), (e, "strong")]})
    out = tmp_path / "data"
    prepare.main([f"--tasks={tmp_path}/GUE", f"--data_dir={out}"])
    files = {name: read_alpaca(str(out / "tasks" / name)) for name in os.listdir(out / "tasks")}
    assert sorted(files) == ["enhancers.test.json", "enhancers.test.reworded.json",
                             "splice_reconstructed.dev.json", "splice_reconstructed.dev.reworded.json",
                             "splice_reconstructed.train.json", "tf_3.train.json"]
    splice = files["splice_reconstructed.train.json"] + files["splice_reconstructed.dev.json"]
    assert [r["output"] for r in splice] == ["Acceptor Sites", "Donor Sites", "Non-Splice Sites"]
    assert [r["input"] for r in splice] == [a, b, c]
    assert splice[0]["task"] == "splice_reconstructed"
    assert "human transcription factor 3 binding site" in files["tf_3.train.json"][0]["instruction"]
    assert files["tf_3.train.json"][1]["choices"] == ["Background Sequences", "Binding Sites"]
    assert files["enhancers.test.json"][0]["choices"] == ["strong", "weak"]


def test_wordings(tmp_path):
    """Training rows have several, held-out rows the paper's; one is in no training row."""
    rows = [(random_dna(50, i), i % 2) for i in range(200)]
    gue(tmp_path / "prom_300_all", {"train": rows[:100], "dev": rows[100:]})
    found = prepare.read_csv_task(str(tmp_path / "prom_300_all"), seed=3)
    asked = {split: Counter(r["instruction"] for r in records) for split, records in found.items()}
    assert len(asked["train"]) == 4 and min(asked["train"].values()) > 10
    paper = ("Determine promoter detection of following dna sequence, The result will be one of the "
             "following: Non-promoter, promoter.")
    assert list(asked["dev"]) == [paper] and paper in asked["train"]
    assert len(asked["dev.reworded"]) == 1 and not asked["dev.reworded"].keys() & asked["train"].keys()
    for a, b in zip(found["dev"], found["dev.reworded"]):
        assert a | {"instruction": ""} == b | {"instruction": ""}
    assert prepare.read_csv_task(str(tmp_path / "prom_300_all"), seed=3) == found


@pytest.mark.parametrize("folder,name,what,words", [
    ("GUE/prom/prom_300_tata", "prom_300_tata", "promoter detection", ["Non-promoter", "promoter"]),
    ("GUE/prom/prom_core_all", "prom_core_all", "core promoter detection", ["Non-promoter", "promoter"]),
    ("GUE/mouse/2", "mouse_2", "mouse transcription factor 2 binding site detection",
     ["Background Sequences", "Binding Sites"]),
    ("GUE/EMP/H3K4me1", "EMP_H3K4me1", "H3K4me1 histone mark detection", ["No Mark", "Mark"]),
    ("GUE/virus/covid", "virus_covid", "virus variant detection", prepare.VARIANTS),
    ("mine/enhancers", "enhancers", "enhancer strength", ["faint", "strong"]),
    ("mine/colour", "colour", "the colour", ["0", "1"]),
    ("mine/other_things", "other_things", "other things", ["0", "1"]),
])
def test_task_descriptions(tmp_path, folder, name, what, words):
    gue(tmp_path / folder, {"train": [(random_dna(50, i), i % 2) for i in range(10)]})
    records = prepare.read_csv_task(str(tmp_path / folder), [
        "enhancers: enhancer strength; 0 = faint; 1 = strong", "colour: the colour"])["train"]
    assert records[0]["task"] == name and records[0]["choices"] == words
    assert [r["output"] for r in records] == words[:2] * 5
    assert all(f"{what} " in r["instruction"] or f"{what}." in r["instruction"]
               or f"{what}," in r["instruction"] for r in records)


def test_one_csv_is_split(tmp_path):
    path = write(tmp_path / "enhancers.csv", "id,sequence,label\n" + "".join(
        f"{i},{random_dna(40, i)},{'strong' if i % 2 else 'weak'}\n" for i in range(100)))
    found = prepare.read_csv_task(path)
    assert {split: len(records) for split, records in found.items()} == {
        "train": 90, "dev": 10, "dev.reworded": 10}
    assert found["train"][0]["task"] == "enhancers"
    assert len({r["input"] for split in ("train", "dev") for r in found[split]}) == 100
    prepare.main([f"--tasks={path}", f"--data_dir={tmp_path}/data"])
    assert len(read_alpaca(f"{tmp_path}/data/tasks/enhancers.dev.json")) == 10


@pytest.mark.parametrize("text", ["no colon", "x:", "x: what; 0 no", ": ; "])
def test_descriptions_refused(tmp_path, text):
    gue(tmp_path / "x", {"train": [("ACGT", 0), ("AAAA", 1)]})
    with pytest.raises(ValueError, match="write FOLDER: what is asked"):
        prepare.read_csv_task(str(tmp_path / "x"), [text])


@pytest.mark.parametrize("text,message", [
    ("seq,label\nACGT,1\n", "the first line should name the columns sequence,label"),
    ("", "an empty file"),
    ("sequence,label\n", "no rows"),
    ("sequence,label\nACGT,\n", "line 2: a row without"),
    ("sequence,label\nACGT\n", "line 2: a row without"),
    ("sequence,label\nACGT,1\nMKLV,0\n", "line 3: 'L' is no nucleotide"),
    ("sequence,label\nACGT,1\nACGT,7\n", "line 3: label '7' is none of 0, 1"),
    ("sequence,label\n,1\n", "line 2: a row without"),
    ("sequence,label\nACGT,1\nACGA,1\n", "all training rows have the label '1'"),
])
def test_csv_refused(tmp_path, text, message):
    os.makedirs(tmp_path / "prom_300_all")
    path = write(tmp_path / "prom_300_all/train.csv", text)
    with pytest.raises(ValueError) as e:
        prepare.read_csv_task(os.path.dirname(path))
    assert message in str(e.value) and path in str(e.value)


GOOD = {"instruction": "Say it.", "input": "", "output": "It."}


@pytest.mark.parametrize("text", [json.dumps([GOOD, GOOD]), json.dumps(GOOD) + "\n\n" + json.dumps(GOOD),
                                  json.dumps([{k: v for k, v in GOOD.items() if k != "input"}] * 2)])
def test_alpaca(tmp_path, text):
    assert read_alpaca(write(tmp_path / "x.json", text)) == [GOOD, GOOD]


@pytest.mark.parametrize("text,message", [
    ('[{"instruction": "a", "output": "b"},\n {"instruction": }]', "line 2, column 18: broken JSON"),
    ('{"instruction": "a", "output": "b"}\n{"instruction"\n', "line 2, column 15: broken JSON"),
    ('[{"instruction": "a"}]', "record 1: no output"),
    ('[{"output": "a"}]', "record 1: no instruction"),
    ('[{"instruction": "a", "output": ""}]', "record 1: no output"),
    ('{"id": "seed", "instruction": "a", "instances": []}', "record 1: no output"),
    ('[1]', "record 1: not an object"),
    ('[]', "no records"),
    ('[{"instruction": "a", "output": "b", "input": 3}]', "record 1: its input is not text"),
    ('[{"instruction": "a", "output": "b", "choices": ["c"]}]', "'b' is not among its choices"),
    ('[{"instruction": "a", "output": "b", "choices": "abc"}]', "its choices are not a list"),
    ('[{"instruction": "a", "output": "b", "choices": ["b", "b"]}]', "each another"),
    ('[{"instruction": "a", "output": "b", "task": 7}]', "its task is not text"),
    ('{\n "data": [\n]}', "line 1, column 2: broken JSON"),
    ('{"data": []}', "record 1: no instruction"),
])
def test_alpaca_refused(tmp_path, text, message):
    path = write(tmp_path / "x.json", text)
    with pytest.raises(ValueError) as e:
        read_alpaca(path)
    assert message in str(e.value) and path in str(e.value)


# -- nothing half-written

def test_failure_leaves_the_folder_as_it_was(toy, tmp_path):
    before = listing(f"{toy}/data")
    protein = write(tmp_path / "p.fa", ">ok\n" + random_dna(50_000) + "\n>p\nMKLV\n")
    tiny = write(tmp_path / "t.fa", ">ok\n" + random_dna(500) + "\n")
    prose = write(tmp_path / "e.txt", "Cells divide. " * 40_000)
    for args, error in [([f"--dna={protein}"], "no nucleotide"),
                        ([f"--dna={tmp_path}/none.fa"], "none.fa: no such file"),
                        ([f"--tasks={tmp_path}"], "no task"),
                        ([f"--dna={tiny}"], "too little to hold any out"),
                        (["--vocab_size=100"], "vocab_size=100 is too small"),
                        (["--split=mixt"], "split=mixt is not one of"),
                        (["--train_on=rna"], "train_on=rna is not one of"),
                        ([f"--english={prose}", "--train_on=dna"], "nothing is left to train on")]:
        with pytest.raises((ValueError, OSError), match=error):
            prepare.main([f"--data_dir={toy}/data", *args])
        assert listing(f"{toy}/data") == before
        assert not os.path.exists(f"{toy}/data.part")


# -- the toy world

def test_toy_world(toy):
    tasks = {}
    for name in os.listdir(f"{toy}/data/tasks"):
        task, split, *reworded = name.removesuffix(".json").split(".")
        if not reworded:
            tasks[task, split] = read_alpaca(f"{toy}/data/tasks/{name}")
    assert sorted(tasks) == [(t, s) for t in ("core_promoter", "promoter", "splice", "tf")
                             for s in ("test", "train")]
    for records in tasks.values():      # no label is commoner than the others
        counts = Counter(r["output"] for r in records)
        assert len(set(counts.values())) == 1 and set(counts) == set(records[0]["choices"])


def test_toy_world_has_its_motifs(toy):
    for r in read_alpaca(f"{toy}/data/tasks/splice.train.json"):
        site = {"Donor Sites": r["input"][30:32] == "GT",
                "Acceptor Sites": r["input"][28:30] == "AG"}
        assert site.get(r["output"], True)
    for r in read_alpaca(f"{toy}/data/tasks/core_promoter.train.json"):
        if r["output"] == "promoter":
            assert r["input"][9:15] in ("CTATAA", "GTATAA", "CTATAT", "GTATAT")


def test_toy_world_does_not_leak(toy):
    """No 40 bases of any test sequence stand in a training sequence or in the pretraining genome,
    on either strand."""
    def words(sequence):
        return {sequence[i:i + 40] for i in range(len(sequence) - 39)}

    training = [text for _, text in read_fasta(f"{toy}/data/raw/genome.fa")]
    testing = set()
    for name in os.listdir(f"{toy}/data/tasks"):
        sequences = [r["input"] for r in read_alpaca(f"{toy}/data/tasks/{name}")]
        if ".test." in name:
            for s in sequences:
                testing |= words(s) | words(reverse_complement(s))
        else:
            training += sequences
    assert not any(words(s) & testing for s in training)


# -- overlaps

@pytest.mark.parametrize("seed", range(5))
def test_overlapping_equals_naive(seed):
    """Sequences cut from a short genome, so that many overlap, some of them with N."""
    rng = np.random.default_rng(seed)
    genome = "".join(rng.choice(list("ACGTN"), p=[.25, .24, .25, .25, .01], size=400))

    def cut(n):
        for start, length, strand in zip(rng.integers(380, size=n), rng.integers(10, 80, size=n),
                                         rng.integers(2, size=n)):
            piece = genome[start:start + length]
            yield reverse_complement(piece) if strand else piece

    train, held_out = list(cut(150)), list(cut(30))
    naive = {i for i, t in enumerate(train) if len(t) >= 20 and any(
        t in h or t in reverse_complement(h) or h in t or reverse_complement(h) in t
        for h in held_out if len(h) >= 20)}
    assert prepare.overlapping(train, held_out) == naive and 10 < len(naive) < 140
    assert prepare.overlapping(train, []) == prepare.overlapping([], held_out) == set()


def test_window_numbers():
    assert prepare.window_numbers(b"ACGTA", 3).tolist() == [0b000110, 0b011011, 0b101100]
    assert prepare.window_numbers(b"AC", 3).tolist() == []
    assert prepare.window_numbers(b"T" * 32, 32).tolist() == [2 ** 64 - 1]


def test_overlapping_rows_are_left_out_of_training(tmp_path, capsys):
    """The held-out rows of one task count for the others too."""
    rng = np.random.default_rng(0)
    a, b, c, d = ("".join(rng.choice(list("ACGT"), size=60)) for _ in range(4))
    for task, split, sequences in (("x", "train", [a, b]), ("x", "test", [c]),
                                   ("y", "train", [a[5:40], reverse_complement(c)[3:30], c + d]),
                                   ("y", "dev", [d])):
        os.makedirs(tmp_path / task, exist_ok=True)
        (tmp_path / task / f"{split}.csv").write_text(
            "sequence,label\n" + "".join(f"{s},{i % 2}\n" for i, s in enumerate(sequences)))
    args = [f"--tasks={tmp_path}/x,{tmp_path}/y", f"--data_dir={tmp_path}/data"]
    prepare.main(args)
    assert "y.train.json: 2 of 3 rows overlap with a held-out row: left out" in capsys.readouterr().out
    read = prepare.read_alpaca(f"{tmp_path}/data/tasks/y.train.json")
    assert [r["input"] for r in read] == [a[5:40]]
    assert len(prepare.read_alpaca(f"{tmp_path}/data/tasks/x.train.json")) == 2
    prepare.main([*args, "--keep_overlaps"])
    assert len(prepare.read_alpaca(f"{tmp_path}/data/tasks/y.train.json")) == 3
