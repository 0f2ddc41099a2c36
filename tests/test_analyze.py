"""Files of sequences: labels, which bases they depend on, alleles, bits, embeddings."""
import gzip
import lzma
import math
import os
import subprocess
import sys

import numpy as np
import pytest
import torch

import instruct
import sample
from bpe import Tokenizer
from conftest import random_dna
from dna import toy as toy_world
from dna.read import read_alpaca, reverse_complement
from config.machine import Machine
from instruct import encode_prompts
from model import GPT, GPTConfig
from tools import analyze
from tools.analyze import align, base_bits, log_odds, marks

ROOT = os.path.dirname(os.path.abspath(sample.__file__))
BASES = "ACGTTGCAAC" * 6
ASK = {"instruction": "Is it?", "choices": ["yes", "no"]}


def run(capsys, *args):
    sample.main([*args, "--device=cpu"])
    return capsys.readouterr().out


def table(text):
    """-> the columns' names, the rows"""
    head, *rows = [line.split("\t") for line in text.splitlines()]
    return head, rows


@pytest.fixture(scope="module")
def toy_session(toy):
    return sample.load(f"{toy}/out", "cpu")._replace(max_len=240)


def session(model, tok):
    return sample.Session(model, tok, "", [], 240, Machine(torch.device("cpu"), torch.float32))


@pytest.fixture(scope="module")
def tok(toy):
    return Tokenizer.load(f"{toy}/out/tokenizer.json")


class Reader:
    """In place of a model: the log-odds of "yes" are a function of the sequence in the prompt."""
    config = GPTConfig(block_size=256)

    def __init__(self, tok, odds):
        self.tok, self.odds = tok, odds

    def log_likelihoods(self, prompts, choices, P):
        texts = [self.tok.decode(ids) for ids in prompts]
        sequences = ["".join(t.split("### Input:")[1].split("###")[0].split()) for t in texts]
        nats = torch.tensor([[self.odds(s), 0.0] for s in sequences])
        return nats, nats > 0


# -- files

@pytest.mark.parametrize("name,text,expected", [
    ("x.fa", ">a b\tc\nacgu\nNR\n;a comment\n\n>d\nTT\n", [("a b c", "ACGTNR"), ("d", "TT")]),
    ("x.csv", "sequence,label\nACGT,1\n\nacgtn,0\n", [("1", "ACGT"), ("2", "ACGTN")]),
    ("x.tsv", "ID\tseq\tnote\nx 1\tACGT\t\n", [("x 1", "ACGT")]),
    ("x.csv", '\ufeffnote,Sequence,name\r\n"a, b",ACGT,p\r\n', [("p", "ACGT")]),
])
def test_read_sequences(tmp_path, monkeypatch, name, text, expected):
    for packed, pack in ((name, bytes), (f"{name}.gz", gzip.compress), (f"{name}.xz", lzma.compress)):
        (tmp_path / packed).write_bytes(pack(text.encode()))
        assert list(analyze.read_records(str(tmp_path / packed))) == expected


@pytest.mark.parametrize("text", [f">x\n{BASES[:36]}\n", f">x\n{BASES[:20]}\n{BASES[20:36]}\n",
                                  f"name,sequence\nx,{BASES[:36]}\n"])
def test_long_sequences_come_in_parts(tmp_path, text):
    """The last one is shorter, by which windows() knows the end."""
    (tmp_path / "x").write_text(text)
    for size in (12, 24, 36, 37):
        parts = [("x", BASES[i:min(i + size, 36)]) for i in range(0, 37, size)]
        assert list(analyze.read_records(str(tmp_path / "x"), size)) == parts


@pytest.mark.parametrize("text,message", [
    ("", "an empty file"),
    ("ACGTACGT\n", "the first line of a table names one column sequence, and here it is 'ACGTACGT'"),
    ("@read\nACGT\n+\nIIII\n", "the first line of a table names one column sequence"),
    ("name,label\na,1\n", "here it is 'name,label'"),
    ("sequence,name\nACGT\n", "line 2: 1 fields, not 2"),
    ("sequence\n", "no rows"),
    ("sequence,name\nACGT,a\n,b\n", "line 3: the sequence is missing ('')"),
    ("sequence,name\nACGT,a\nNA,b\n", "line 3: the sequence is missing ('NA')"),
    ("sequence,name\nACGT,a\nnan,b\n", "line 3: the sequence is missing ('nan')"),
    (">a\nACGT\nMKL\n", "line 3: 'L' is no nucleotide"),
    (";\nACGT\n", "line 2: not FASTA"),
])
def test_what_is_no_file_of_sequences_is_refused(tmp_path, text, message):
    (tmp_path / "x").write_text(text)
    with pytest.raises(ValueError) as e:
        list(analyze.read_records(str(tmp_path / "x")))
    assert str(e.value).startswith(f"{tmp_path}/x: ") and message in str(e.value)


def test_results_appear_when_complete(tmp_path, capsys):
    path = str(tmp_path / "x.tsv.gz")

    def rows():
        yield ["name"]
        yield ["half"]
        raise ValueError

    with pytest.raises(ValueError):
        analyze.write_table(path, rows())
    assert os.listdir(tmp_path) == []
    analyze.write_table(path, [["name", "n", "x", "y"], ["a, b", 1, 0.5, np.float64(-1e-7)]])
    with gzip.open(path, "rt", newline="") as f:
        assert f.read() == "name\tn\tx\ty\na, b\t1\t0.500000\t-0.000000\n"
    assert os.listdir(tmp_path) == ["x.tsv.gz"] and capsys.readouterr().out == f"wrote {path}\n"


@pytest.mark.parametrize("name,expected", [
    ("x.csv", 'name,n\n"a, b",1\n'), ("x.csv.gz", 'name,n\n"a, b",1\n'),
    ("x.tsv", "name\tn\na, b\t1\n"), ("x", "name\tn\na, b\t1\n"), ("-", "name\tn\na, b\t1\n")])
def test_csv_has_commas_and_all_else_tabs(tmp_path, capsys, name, expected):
    path = name if name == "-" else str(tmp_path / name)
    analyze.write_table(path, [["name", "n"], ["a, b", 1]])
    if name == "-":
        assert capsys.readouterr().out == expected
    else:
        opened = gzip.open if name.endswith(".gz") else open
        with opened(path, "rt", newline="") as f:
            assert f.read() == expected


# -- labels

def test_the_mean_of_both_strands(tok):
    s = session(Reader(tok, lambda dna: dna.count("A") - dna.count("T")), tok)
    one = np.exp(analyze.ask(s, ASK, ["AAAACCCC", "ACGTACGT"], "")[0])
    both = np.exp(analyze.ask(s, ASK | {"either_strand": True}, ["AAAACCCC", "ACGTACGT"], "")[0])
    assert one[:, 0].tolist() == pytest.approx([1 / (1 + math.exp(-4)), 0.5])
    assert both[:, 0].tolist() == pytest.approx([0.5, 0.5])
    turned = np.exp(analyze.ask(s, ASK, [reverse_complement("AAAACCCC")], "")[0])
    assert turned[0, 0] == pytest.approx(1 - one[0, 0])


def test_log_odds_are_precise_near_one():
    log_p = torch.tensor([[50.0, 0.0, 0.0], [0.0, 0.0, 0.0]], dtype=torch.float64).log_softmax(1)
    assert log_odds(log_p.numpy(), 0).tolist() == pytest.approx([50 - math.log(2), -math.log(2)])


@pytest.mark.parametrize("length", [10, 60, 400, 4000])
def test_kept_length(tok, length):
    """What is beyond it does not change the prompt, and what is within it does."""
    text = (BASES * 99)[:length]
    (ids,), (kept,) = encode_prompts(tok, [ASK | {"input": text}], 240)
    assert (kept < length) == (len(ids) == 240) and 0 < kept <= length
    sequence = tok.decode(ids).split("### Input:")[1].split("###")[0]
    assert "".join(sequence.split()) == text[:kept]


def test_predict(toy, tmp_path, capsys):
    rows = [f"{i},{BASES[:8 + 5 * (7 * i % 9)]}\n" for i in range(9)]
    (tmp_path / "x.csv").write_text("id,sequence\n" + "".join(rows))
    ask = [f"--out_dir={toy}/out", f"--predict={tmp_path}/x.csv", "--instruction=Is it?",
           "--choices=yes,no"]
    head, found = table(run(capsys, *ask))
    assert head == ["name", "label", "yes", "no", "note"]
    assert [row[0] for row in found] == list("012345678")           # in the order of the file
    for _, label, *p, remarks in found:
        assert label == head[2:][p.index(max(p))] and remarks == ""
        assert all(len(x) == 8 for x in p) and sum(map(float, p)) == pytest.approx(1, abs=2e-6)
    assert len({row[2] for row in found}) == 9                      # each sequence its own
    # the same to a file, and one by one
    out = run(capsys, *ask, f"--output={tmp_path}/y.tsv")
    assert out == f"wrote {tmp_path}/y.tsv\n"
    assert table((tmp_path / "y.tsv").read_text()) == (head, found)
    (tmp_path / "x.csv").write_text("id,sequence\n" + rows[4])
    alone = table(run(capsys, *ask))[1][0]
    assert float(alone[2]) == pytest.approx(float(found[4][2]), abs=2e-6)


def tuned(toy, folder, names):
    """A copy of the toy model that says it was tuned on tasks of these names -> its --out_dir"""
    state = torch.load(f"{toy}/out/best.pt", weights_only=True)
    questions = {name: {"instruction": f"Is it {name}?", "choices": ["yes", "no"], "is_dna": True,
                        "either_strand": i == 0} for i, name in enumerate(names)}
    torch.save(state | {"questions": questions, "prompt": instruct.prompt_form()}, folder / "best.pt")
    os.symlink(f"{toy}/out/tokenizer.json", folder / "tokenizer.json")
    return f"--out_dir={folder}"


@pytest.mark.parametrize("length,window,stride,spans", [
    (10, 4, 3, [(0, 4), (3, 7), (6, 10)]),                  # the last one ends with the record
    (11, 4, 3, [(0, 4), (3, 7), (6, 10), (9, 11)]),
    (10, 4, 4, [(0, 4), (4, 8), (8, 10)]),
    (10, 2, 5, [(0, 2), (5, 7)]), (3, 4, 3, [(0, 3)]), (4, 4, 1, [(0, 4)]), (0, 4, 3, [(0, 0)])])
def test_windows(monkeypatch, length, window, stride, spans):
    """In whatever parts a record comes; and each record begins anew, even one of the same name."""
    dna = "ACGTTGCAACG"[:length]
    for block in (1, 2, 3, 4, 5, 10, 11, 99):
        monkeypatch.setattr(analyze, "BLOCK", block)
        parts = [("x", dna[i:i + block]) for i in range(0, length + 1, block)]
        found = list(analyze.windows(parts * 2, window, stride))
        assert found == [(("x", a, b), dna[a:b]) for a, b in spans] * 2


def test_windows_are_sequences(toy, tmp_path, capsys, monkeypatch):
    """Windows of a record have the rows that the same sequences have as records."""
    monkeypatch.setattr(analyze, "CHUNK", 7)
    dna = BASES * 3 + "N" * 50 + "GATTACACAT" * 9
    (tmp_path / "x.fa").write_text(f">chr1 x\n{dna}\n>empty\n>short\n{BASES[:20]}\n")
    ask = [tuned(toy, tmp_path, ["it"]), f"--predict={tmp_path}/x.fa"]
    head, rows = table(run(capsys, *ask, "--window=40", "--stride=15"))
    assert head == ["name", "start", "end", "label", "yes", "no", "note"]
    assert [row[:3] for row in rows if row[0] != "chr1 x"] == [["empty", "0", "0"], ["short", "0", "20"]]
    spans = [(int(row[1]), int(row[2])) for row in rows[:-2]]
    assert spans == [(i, min(i + 40, 320)) for i in range(0, 290, 15)]
    assert any(row[3] == "" for row in rows[:-2])                       # among N there is no label
    (tmp_path / "x.fa").write_text("".join(f">{a}\n{dna[a:b]}\n" for a, b in spans))
    head, alone = table(run(capsys, *ask))
    assert head == ["name", "label", "yes", "no", "note"]
    assert [row[3:] for row in rows[:-2]] == [one[1:] for one in alone]
    # by default they lie side by side
    head, rows = table(run(capsys, *ask[:1], f"--predict={tmp_path}/x.fa", "--window=30"))
    assert [row[1:3] for row in rows[:2]] == [["0", "30"], ["30", "40"]]


@pytest.mark.parametrize("task", ["tf_0", "prom_core_all"])     # on both strands, on one
def test_the_same_to_the_last_digit(task):
    """A sequence's probabilities do not depend on what else is asked, of the model in the box."""
    s = sample.load(f"{ROOT}/models/laptop", "cpu")
    dna = random_dna(900)
    sequences = [dna[i:i + 40 + i // 10] for i in range(0, 800, 10)]
    together = s.predict(sequences, task)
    for i in (0, 7, 33, 79):
        assert s.predict([sequences[i]], task) == [together[i]]
    assert s.predict(sequences[20:39], task) == together[20:39]


def test_the_last_digit_on_two_cores(tok, two_cores):
    """Two cores that share a product of 256 channels round it in another way than one."""
    torch.manual_seed(0)
    s = session(GPT(GPTConfig(len(tok), 256, 1, 4, 256)).eval(), tok)
    question = {"instruction": "Is it a promoter?", "choices": ["yes", "no"], "either_strand": True}
    sequences = [random_dna(600)[i:i + 60] for i in range(0, 500, 2)]
    together, _ = analyze.ask(s, question, sequences, "")
    for i in (0, 100, 249):
        alone, _ = analyze.ask(s, question, sequences[i:i + 1], "")
        assert alone.tolist() == together[i:i + 1].tolist()


def test_what_a_prompt_does_not_hold_is_refused(toy, tmp_path, capsys):
    (tmp_path / "x.fa").write_text(f">good\n{BASES}\n>long one\n{BASES * 99}\n")
    ask = [tuned(toy, tmp_path, ["it"]), f"--predict={tmp_path}/x.fa", f"--output={tmp_path}/y.csv"]
    message = (r"x.fa: long one: 5,940 letters, and a prompt holds about (\d+) bases: cut it, as "
               r"--window=\1 does")
    with pytest.raises(ValueError, match=message):
        run(capsys, *ask)
    with pytest.raises(ValueError, match=r"window=5000: a prompt holds about \d+ bases"):
        run(capsys, *ask, "--window=5000")
    assert not os.path.exists(tmp_path / "y.csv")
    for wrong in (["--stride=9"], ["--positions"]):
        with pytest.raises(ValueError, match="give both"):
            run(capsys, *ask, *wrong)

    # of an empty file not even the names of the columns are written
    (tmp_path / "x.fa").write_text("")
    with pytest.raises(ValueError, match="x.fa: an empty file"):
        run(capsys, *ask[:2])
    assert capsys.readouterr().out == ""


def test_memory_does_not_grow_with_the_file(toy, tmp_path, monkeypatch):
    """No more of a record is read than the next chunk of its windows needs."""
    s, read = sample.load(f"{toy}/out", "cpu"), []
    monkeypatch.setattr(analyze, "CHUNK", 8)
    monkeypatch.setattr(analyze, "predictions", lambda s, q, sequences, what: [
        analyze.Prediction("yes", 1.0, {"yes": 1.0, "no": 0.0}, str(len(read)), len(x)) for x in sequences])
    real = analyze.read_lines
    monkeypatch.setattr(analyze, "read_lines", lambda *args: (read.append(1) or x for x in real(*args)))
    (tmp_path / "x.fa").write_text(">x\n" + f"{BASES}\n" * 9999)
    cfg = sample.SampleConfig(predict=f"{tmp_path}/x.fa", window=50, output=f"{tmp_path}/y.tsv")
    analyze.write_table(cfg.output, analyze.predict(s._replace(max_len=240), cfg, [ASK]))
    rows = table((tmp_path / "y.tsv").read_text())[1]
    blocks = [int(row[-1]) * len(BASES) - int(row[2]) for row in rows]
    assert len(rows) == 11999 and max(blocks) < 2 * analyze.BLOCK


def test_several_tasks(toy, tmp_path, capsys):
    """A column each, of one reading of the file; a near name is suggested."""
    (tmp_path / "x.fa").write_text(f">a b\n{BASES}\n>c\nACGT\n")
    ask = [tuned(toy, tmp_path, ["tf_0", "tf_1", "splice"]), f"--predict={tmp_path}/x.fa"]
    alone = {}
    for task in ("tf_0", "tf_1", "splice"):
        head, alone[task] = table(run(capsys, *ask, f"--task={task}"))
        assert head == ["name", "label", "yes", "no", "note"]
    for given, names in [("tf_1,tf_0", ["tf_1", "tf_0"]), ("tf_*", ["tf_0", "tf_1"]),
                         ("splice,all", ["splice", "tf_0", "tf_1"]), ("tf_0,tf_*", ["tf_0", "tf_1"])]:
        head, rows = table(run(capsys, *ask, f"--task={given}"))
        assert head == ["name", *(f"{task}:{x}" for task in names for x in ("label", "yes", "no")), "note"]
        for i, row in enumerate(rows):
            assert row == [alone["tf_0"][i][0], *(x for task in names for x in alone[task][i][1:4]),
                           alone["tf_0"][i][-1]]
    for given, hint in [("tf0", "did you mean tf_0"), ("x", "was tuned on tf_0, tf_1, splice"),
                        ("x_*", "was tuned on")]:
        with pytest.raises(ValueError, match=f"task={given.replace('*', '.')}: .*{hint}"):
            run(capsys, *ask, f"--task=splice,{given}")
    # the other uses
    args = [f"--explain={BASES[:20]}", "--task=tf_*", f"--output={tmp_path}/why.csv"]
    out = run(capsys, ask[0], *args)
    assert out.count("sequence: ") == 2
    lines = (tmp_path / "why.csv").read_text().splitlines()
    assert [line.split(",")[1] for line in lines] == ["question"] + ["tf_0"] * 20 + ["tf_1"] * 20
    head, rows = table(run(capsys, ask[0], f"--compare={tmp_path}/x.fa,{tmp_path}/x.fa", "--task=tf_*"))
    assert "tf_1:yes_ref" in head and rows[0][:3] == ["a", "a b", "a b"]
    assert run(capsys, ask[0], f"--input={BASES}", "--task=tf_*").count("asked as tf_") == 2


def test_a_task_is_asked_as_it_was_tuned(toy, tmp_path, capsys):
    """Its words, its labels, its strands; an untuned question is called a guess."""
    state = torch.load(f"{toy}/out/best.pt", weights_only=True)
    it = {"instruction": "Is it?", "choices": ["yes", "no"], "is_dna": True, "either_strand": True}
    state["questions"] = {"it": it, "other": it | {"instruction": "What else?"}}
    torch.save(state | {"prompt": instruct.prompt_form()}, tmp_path / "best.pt")
    os.symlink(f"{toy}/out/tokenizer.json", tmp_path / "tokenizer.json")
    dna = "A" * 40 + "C" * 20
    (tmp_path / "x.fa").write_text(f">a\n{dna}\n>b\n{reverse_complement(dna)}\n")
    ask = [f"--out_dir={tmp_path}", f"--predict={tmp_path}/x.fa"]
    head, (a, b) = table(run(capsys, *ask, "--task=it"))
    assert head == ["name", "label", "yes", "no", "note"] and a[1:] == b[1:]    # either strand
    sample.main([*ask, "--instruction=Are you sure?", "--choices=aye,never", "--device=cpu"])
    out, err = capsys.readouterr()
    assert err == sample.GUESS + "\n" and table(out)[1][0][1:] != table(out)[1][1][1:]
    for args, message in [(["--instruction=Are you sure?"], "give its --choices=A,B"),
                          ([], "--predict needs a --task, or an --instruction"),
                          (["--task=that"], "was tuned on it")]:
        with pytest.raises(ValueError, match=message):
            sample.main([*ask, *args, "--device=cpu"])


def test_what_is_not_read_is_noted(toy, tmp_path, capsys):
    """By one rule in every use: letters that are not bases, what is cut off a prompt, and sequences
    without eight bases in a row, which have no label, no bits and no states."""
    some = f">good\n{BASES}\n>n\n{BASES}NNR\n>short\nACGTACG\n>broken\n{'ACGN' * 9}\n"
    (tmp_path / "some.fa").write_text(some)
    (tmp_path / "x.fa").write_text(f"{some}>long\n{BASES * 99}\n")
    notes = {"good": "", "n": "3 of 63 letters are ambiguous", "short": "no 8 bases in a row",
             "broken": "no 8 bases in a row; 9 of 36 letters are ambiguous"}
    file, ask = f"{tmp_path}/x.fa", [f"--out_dir={toy}/out", "--instruction=Is it?", "--choices=yes,no"]
    head, rows = table(run(capsys, *ask, f"--predict={tmp_path}/some.fa"))
    assert {row[0]: row[-1] for row in rows} == notes
    assert [row[1] == "" for row in rows] == [row[2:4] == ["nan", "nan"] for row in rows] == \
        [False, False, True, True]
    # which the Python interface cuts
    s = sample.load(f"{toy}/out", "cpu", ASK["choices"])
    (found,) = analyze.predictions(s, ASK, [BASES * 99], "")
    cut = found.note
    assert cut == f"only the first {found.kept:,} of 5,940 letters were read"
    # a length that tuning has not seen
    usual = ASK | {"length": 120}
    asked = [BASES[:59], BASES, BASES * 4, BASES * 4 + "A"]
    told = [a.note for a in analyze.predictions(s, usual, asked, "")]
    assert told == ["tuned on sequences of 120 bases", "", "", "tuned on sequences of 120 bases"]

    head, rows = table(run(capsys, *ask[:1], f"--score={file}"))
    assert {row[0]: row[-1] for row in rows} == notes | {"long": ""}        # which is read whole
    out = run(capsys, *ask, f"--explain={file}")
    assert [line for line in out.splitlines() if line.startswith(("n:", "short:", "broken:", "long:"))] == [
        next(line for line in out.splitlines() if line.startswith("n: ")),
        f"short: no label ({notes['short']})", f"broken: no label ({notes['broken']})",
        next(line for line in out.splitlines() if line.startswith("long: "))]
    assert f" ({notes['n']})\n" in out and f" ({cut})\n" in out
    head, rows = table(run(capsys, *ask, f"--compare={file},{file}"))
    assert {row[0]: row[-1] for row in rows} == {
        name: f"ref: {text}; alt: {text}" if text else "" for name, text in (notes | {"long": cut}).items()}
    sample.main([*ask[:1], f"--embed={file}", f"--output={tmp_path}/e.npy", "--device=cpu"])
    assert capsys.readouterr().err == "".join(f"{name}: {text}\n" for name, text in notes.items() if text)
    assert np.isnan(np.load(tmp_path / "e.npy")).all(axis=1).tolist() == [False, False, True, True, False]


def test_a_long_instruction_is_refused(toy_session):
    with pytest.raises(ValueError, match="the instruction does not fit into 9 tokens"):
        analyze.ask(toy_session._replace(max_len=9), ASK, [BASES], "")


# -- which bases a label depends on

def test_mutation_effects(tok):
    """Of a reader that counts As: A in place of another base adds one, of an A takes one away."""
    s = session(Reader(tok, lambda dna: dna.count("A")), tok)
    k, odds, changes = analyze.mutation_effects(s, ASK, "GANTACAAAACC")
    assert (k, odds) == (0, pytest.approx(6))
    assert changes[0].tolist() == pytest.approx([1, 0, 0, 0])
    assert changes[1].tolist() == pytest.approx([0, -1, -1, -1])
    assert changes[2].tolist() == pytest.approx([1, 0, 0, 0])
    means = analyze.mean_changes("GANTACAAAACC", changes)
    assert means[:3].tolist() == pytest.approx([1 / 3, -1, 1 / 4])
    assert marks(means) == "+#++#+####++"
    # of the likeliest label, whichever it is
    s = session(Reader(tok, lambda dna: -dna.count("A")), tok)
    k, odds, negative = analyze.mutation_effects(s, ASK, "GANTACAAAACC")
    assert (k, odds) == (1, pytest.approx(6)) and np.allclose(negative, changes)


def test_explain(toy, tmp_path, capsys):
    ask = [f"--out_dir={toy}/out", "--instruction=Is it?", "--choices=yes,no"]
    out = run(capsys, *ask, f"--explain={BASES + 'GATTACA'}", f"--output={tmp_path}/why.tsv")
    lines = out.splitlines()
    assert lines[0].startswith("sequence: ") and "\033" not in out
    assert lines[1] == f"     1  {BASES}" and lines[3] == "    61  GATTACA"
    assert lines[-1] == f"next: python -m tools.plot --explain {tmp_path}/why.tsv"
    head, rows = table((tmp_path / "why.tsv").read_text())
    assert head == ["name", "question", "label", "position", "base", "A", "C", "G", "T"]
    assert [int(row[3]) for row in rows] == list(range(1, 68)) and {row[1] for row in rows} == {"Is it?"}
    assert "".join(row[4] for row in rows) == BASES + "GATTACA"
    assert all(row[head.index(row[4])] == "0.000000" for row in rows)
    assert sum(x != "0.000000" for row in rows for x in row[5:]) > 0.9 * 3 * 67
    # a file of it gives the same
    (tmp_path / "x.fa").write_text(f">one\n{BASES}GATTACA\n>two\n{BASES}\n")
    run(capsys, *ask, f"--explain={tmp_path}/x.fa", f"--output={tmp_path}/why.tsv")
    again = table((tmp_path / "why.tsv").read_text())[1]
    assert [row[1:] for row in again if row[0] == "one"] == [row[1:] for row in rows]
    assert sum(row[0] == "two" for row in again) == 60
    # too short to be DNA, but no file either
    assert run(capsys, *ask, "--explain=ACGU").startswith("sequence: no label (no 8 bases in a row)\n")


def test_only_what_is_read_is_explained(tok):
    s = session(Reader(tok, lambda dna: dna.count("A")), tok)._replace(max_len=120)
    _, _, changes = analyze.mutation_effects(s, ASK, BASES * 9)
    assert len(changes) == encode_prompts(tok, [ASK | {"input": BASES * 9}], 120)[1][0] < 540
    assert (changes[:-9] != 0).any(axis=1).all()


def test_marks_stand_below_the_bases(capsys):
    analyze.show("ACGT", np.array([-1, 0.3, 0, -0.2]))
    assert capsys.readouterr().out == "     1  ACGT\n        #+ :\n"


def test_planted_elements_stand_out(toy, tmp_path, capsys):
    """A small model tuned on core promoters of the toy world, whose truth is known: 40 bases before
    the start, with a BRE at 2 and a TATA box at 9, by which it tells them from background."""
    name = f"{toy}/data/tasks/core_promoter"
    instruct.main([f"--init_from={toy}/out", f"--tasks={name}.train.json",
                   f"--eval_tasks={name}.test.json", f"--out_dir={tmp_path}", "--epochs=20",
                   "--learning_rate=1e-2", "--gradient_accumulation_steps=1", "--warmup_steps=5",
                   "--eval_interval=1000", "--device=cpu", "--dtype=float32"])
    s = sample.load(str(tmp_path), "cpu")
    question = s.question()
    promoters = [r["input"] for r in read_alpaca(f"{name}.test.json") if r["output"] == "promoter"]
    planted = np.zeros(60, dtype=bool)
    planted[2:9 + len(toy_world.MOTIFS["TATA box"])] = True
    inside, outside = [], []
    for sequence in promoters[:8]:
        k, _, changes = analyze.mutation_effects(s, question, sequence)
        means = analyze.mean_changes(sequence, changes)
        if question["choices"][k] == "promoter":
            inside.append(means[planted].mean())
            outside.append(means[~planted].mean())
    assert len(inside) >= 5 and np.mean(inside) < -0.5 and np.mean(inside) < 3 * np.mean(outside)


# -- bits

@pytest.mark.parametrize("bases", [8, 9, 40, 400])
def test_base_bits(bases):
    """Over windows that overlap, every token once; of a model that only knows its bigrams, so that
    the context does not matter, the same as in one piece."""
    tok = Tokenizer.train(["ACGTTGCA" * 9], 257)
    torch.manual_seed(0)
    model = GPT(GPTConfig(257, 16, 1, 1, 8)).eval()
    torch.nn.init.normal_(model.transformer.wte.weight)
    torch.nn.init.zeros_(model.transformer.wpe.weight)
    torch.nn.init.zeros_(model.transformer.h[0].attn.c_proj.weight)
    sequence = ("GATTACA" * 99)[:bases]
    ids = [tok.eot] + tok.encode(sequence)
    nats = sum(-model(torch.tensor([[a]]))[0][0, 0].log_softmax(-1)[b].item()
               for a, b in zip(ids, ids[1:]))
    bits = base_bits(session(model, tok), sequence)
    assert len(bits) == bases and bits.sum() == pytest.approx(nats / math.log(2), rel=1e-6)
    # between stretches there are none, and each is a document of its own
    alone = base_bits(session(model, tok), f"ACGTRR{sequence}N{sequence}")
    assert alone == pytest.approx([*[math.nan] * 6, *bits, math.nan, *bits], nan_ok=True)


def test_bases_share_the_bits_of_their_token(toy_session):
    bits, s = base_bits(toy_session, BASES), toy_session
    lengths = [len(s.tok.decode([i])) for i in s.tok.encode(BASES)]
    assert sum(lengths) == 60 and max(lengths) > 1
    assert all(np.ptp(part) == 0 for part in np.split(bits, np.cumsum(lengths)[:-1]))


def test_score(toy, toy_session, tmp_path, capsys):
    fasta = tmp_path / "x.fa"
    fasta.write_text(">one\nACGTACGTACGTTTTT\nNNNNNNNNNN\nGGGGGGGGGG\n>two\n" + "acgu" * 500 +
                     "\n>short\nACGT\n>one\nACGTACGTACGTTTTT\n>none\n>unknown\n" + "N" * 50 + "\n")
    head, rows = table(run(capsys, f"--out_dir={toy}/out", f"--score={fasta}"))
    assert head == ["name", "bits", "bits_per_base", "bases", "note"]
    assert [[row[3], row[0]] for row in rows] == [["26", "one"], ["2000", "two"], ["0", "short"],
                                                  ["16", "one"], ["0", "none"], ["0", "unknown"]]
    for row in rows:
        assert (row[1:3] == ["nan", "nan"]) == (row[3] == "0") == ("no 8 bases in a row" in row[4])

    a, b = (base_bits(toy_session, dna).sum() for dna in ("ACGTACGTACGTTTTT", "GGGGGGGGGG"))
    assert float(rows[0][1]) == pytest.approx(a + b, abs=1e-5)
    assert float(rows[0][2]) == pytest.approx((a + b) / 26, abs=1e-6)
    assert rows[3][1] == f"{a:.6f}"


def test_score_of_each_base(toy, toy_session, tmp_path, capsys):
    dna = f"{BASES}NN{BASES[:9]}"
    (tmp_path / "x.fa").write_text(f">one\n{dna}\n>two\nACGT\n")
    sample.main([f"--out_dir={toy}/out", f"--score={tmp_path}/x.fa", "--positions", "--device=cpu"])
    out, err = capsys.readouterr()
    head, rows = table(out)
    assert head == ["name", "position", "base", "bits"] and err == "the bases of a token share its bits\n"
    expected = [f"{x:.6f}" for x in base_bits(toy_session, dna)]
    assert rows[:71] == [["one", str(i), *pair] for i, pair in enumerate(zip(dna, expected), start=1)]
    assert [row[3] for row in rows[60:62]] == ["nan", "nan"] and rows[71:] == [
        ["two", str(i), base, "nan"] for i, base in enumerate("ACGT", start=1)]


# -- alleles

def test_compare(toy, toy_session, tmp_path, capsys):
    """Pairs in one file or in two; the alleles' own bits, and with a question its probabilities."""
    s, changed = toy_session, BASES.replace("TTG", "TAG", 1)
    (tmp_path / "pairs.fa").write_text(f">a ref\n{BASES}\n>b\n{BASES[:20]}\n>a alt\n{changed}\n>b\n{BASES[:20]}\n")
    (tmp_path / "ref.csv").write_text(f"name,sequence\na ref,{BASES}\nb,{BASES[:20]}\n")
    (tmp_path / "alt.fa").write_text(f">b\n{BASES[:20]}\n>a alt\n{changed}\n")
    ask = [f"--out_dir={toy}/out", f"--compare={tmp_path}/pairs.fa"]
    head, rows = table(run(capsys, *ask))
    assert head == ["name", "name_ref", "name_alt", "bases_ref", "bases_alt", "bases_both", "bits_ref",
                    "bits_alt", "bits_difference", "note"]
    assert [row[:6] for row in rows] == [["a", "a ref", "a alt", "60", "60", "60"],
                                         ["b", "b", "b", "20", "20", "20"]]
    rows = [row[1:] for row in rows]
    a, b = (base_bits(s, dna).sum() for dna in (BASES, changed))
    assert [float(x) for x in rows[0][5:8]] == pytest.approx([a, b, b - a], abs=2e-6)
    assert rows[1][7:] == ["0.000000", ""]
    assert table(run(capsys, ask[0], f"--compare={tmp_path}/ref.csv,{tmp_path}/alt.fa"))[1] == [
        [row[0].split()[0], *row] for row in rows]

    head, more = table(run(capsys, *ask, "--instruction=Is it?", "--choices=yes,no"))
    head, more = head[1:], [row[1:] for row in more]
    assert head[8:-1] == ["yes_ref", "yes_alt", "yes_difference", "no_ref", "no_alt", "no_difference"]
    assert [row[:8] for row in more] == [row[:8] for row in rows] and more[1][10] == "0.000000"
    p, q = np.exp(analyze.ask(s, ASK, [BASES, changed], "")[0])[:, 0]
    assert [float(x) for x in more[0][8:11]] == pytest.approx([p, q, q - p], abs=2e-6)


@pytest.mark.parametrize("ref,alt,message", [
    ("abc", "acd", "b is there 1 times in x/ref.fa and 0 times in x/alt.fa"),
    ("a", "ab", "b is there 0 times in x/ref.fa and 1 times in x/alt.fa"),
    ("a", "aa", "a is there 1 times in x/ref.fa and 2 times in x/alt.fa"),
    ("aabbc", None, "c is there 1 times in x/ref.fa: a pair is once in each"),
    ("aaa", None, "a is there 3 times in x/ref.fa"),
])
def test_what_has_no_partner_is_refused(tmp_path, monkeypatch, ref, alt, message):
    monkeypatch.chdir(tmp_path)
    os.mkdir("x")
    paths = []
    for path, names in (("x/ref.fa", ref), ("x/alt.fa", alt)):
        if names:
            with open(path, "w") as f:
                f.writelines(f">{name} {i}\n{BASES}\n" for i, name in enumerate(names))
            paths.append(path)
    with pytest.raises(ValueError, match=message):
        analyze.read_pairs(paths)


def test_align():
    def letters(ref, alt):
        at_ref, at_alt = align(ref, alt)
        return "".join(ref[i] for i in at_ref), "".join(alt[i] for i in at_alt)

    assert letters("ACGT", "AGGN") == ("ACGT", "AGGN")              # substitutions
    assert letters("AACGTT", "AATT") == ("AATT", "AATT")            # a deletion
    assert letters("AATT", "AACGTT") == ("AATT", "AATT")            # an insertion
    assert letters("AAAA", "AA") == ("AA", "AA")                    # in a repeat
    assert letters("ANCC", "ANCGGC") == ("ANCC", "ANCC")            # with an N in both
    assert letters("", "ACGT") == ("", "")


def test_alleles_are_compared_on_the_bases_of_both(toy_session, monkeypatch):
    """A base that one allele lacks does not count: neither N nor an insertion makes an allele likely
    or unlikely by itself. Of a model to which every base costs two bits, no allele differs."""
    rng = np.random.default_rng(0)
    dna = "".join(rng.choice(list("ACGT"), size=400))
    hidden = dna[:100] + 100 * "N" + dna[200:]
    a, b = analyze.shared_bits(toy_session, dna, hidden)
    assert a.tolist() == b.tolist() and len(a) == 300               # read in the same stretches
    a, b = analyze.shared_bits(toy_session, dna, "N" * 400)
    assert len(a) == len(b) == 0 and math.isnan(analyze.total(a))
    inserted = dna[:200] + "".join(rng.choice(list("ACGT"), size=30)) + dna[200:]
    a, b = analyze.shared_bits(toy_session, dna, inserted)
    assert len(a) == len(b) == 400 and a.sum() == pytest.approx(base_bits(toy_session, dna).sum())
    assert 0 < abs(b.sum() - a.sum()) < 15                          # 30 bases cost 60 bits and more
    monkeypatch.setattr(analyze, "base_bits", lambda s, sequence: np.full(len(sequence), 2.0))
    assert [x.tolist() for x in analyze.shared_bits(toy_session, dna, inserted)] == [[2.0] * 400] * 2


def test_lengths_that_differ_are_noted(toy, tmp_path, capsys):
    (tmp_path / "x.fa").write_text(f">a\n{BASES}\n>a\n{BASES}ACGTTTN\n")
    head, (row,) = table(run(capsys, f"--out_dir={toy}/out", f"--compare={tmp_path}/x.fa"))
    assert row[3:6] == ["60", "66", "60"]
    assert row[-1] == "lengths differ: 60 and 67 letters; alt: 1 of 67 letters are ambiguous"


def test_a_tuned_model_scores_with_a_warning(toy, tmp_path, capsys):
    (tmp_path / "x.fa").write_text(">one\nACGTACGTACGT\n")
    sample.main([f"--out_dir={toy}/out", f"--score={tmp_path}/x.fa"])
    assert capsys.readouterr().err == ""
    state = torch.load(f"{toy}/out/best.pt", weights_only=True)
    questions = {"it": {"instruction": "Is it?", "choices": ["yes", "no"]}}
    torch.save(state | {"questions": questions, "prompt": instruct.prompt_form()}, tmp_path / "best.pt")
    os.symlink(f"{toy}/out/tokenizer.json", tmp_path / "tokenizer.json")
    sample.main([f"--out_dir={tmp_path}", f"--score={tmp_path}/x.fa"])
    out, err = capsys.readouterr()
    assert out.count("\n") == 2 and err.startswith("warning: ") and "pretrained" in err


# -- embeddings

def test_embed(toy, toy_session, tmp_path, capsys):
    """Each row is the mean over its own tokens, whatever it is batched with, over windows where it
    is longer than the context."""
    model, tok = toy_session.model, toy_session.tok
    sequences = [BASES[:n] for n in (60, 9, 33)] + ["GATTACACAT" * 200]
    (tmp_path / "x.fa").write_text("".join(f">s{i} x\n{s}\n" for i, s in enumerate(sequences)))
    run(capsys, f"--out_dir={toy}/out", f"--embed={tmp_path}/x.fa", f"--output={tmp_path}/e.npy")
    vectors = np.load(tmp_path / "e.npy")
    assert vectors.shape == (4, 16) and vectors.dtype == np.float32
    assert (tmp_path / "e.names.txt").read_text() == "s0 x\ns1 x\ns2 x\ns3 x\n"
    for vector, sequence in zip(vectors, sequences):
        ids, states = tok.encode(sequence), []
        for start in range(0, len(ids), 255):
            idx = torch.tensor([[tok.eot, *ids[start:start + 255]]])
            states += model.hidden(idx)[0, 1:].tolist()
        assert len(states) == len(ids)
        assert vector == pytest.approx(np.mean(states, axis=0), abs=1e-5)
    with pytest.raises(ValueError, match="--output=NAME.npy"):
        sample.main([f"--out_dir={toy}/out", f"--embed={tmp_path}/x.fa"])


def test_states_are_those_of_bases(toy_session):
    """N between two stretches changes nothing, as each is a document."""
    parts = BASES[:31], BASES[:9]
    alone = analyze.mean_states(toy_session, parts)
    n = [len(toy_session.tok.encode(part)) for part in parts]
    (joined,) = analyze.mean_states(toy_session, [f"{parts[0]}{'N' * 600}R{parts[1]}"])
    assert joined == pytest.approx(np.average(alone, axis=0, weights=n), abs=1e-5)
    assert np.isnan(analyze.mean_states(toy_session, ["NNNN", "ACGT"])).all()


# -- as a command

def test_pipes_and_one_clear_line(toy, tmp_path):
    def command(*args, text=None, shell=""):
        return subprocess.run(f"{sys.executable} {ROOT}/sample.py --device=cpu {' '.join(args)}{shell}",
                              input=text, capture_output=True, text=True, shell=True)

    out_dir = f"--out_dir={toy}/out"
    fasta = "".join(f">{i}\n{BASES}\n" for i in range(9))
    done = command(out_dir, "--score=-", text=fasta, shell=" | head -1")
    assert done.stdout.startswith("name\tbits\t") and done.stderr == ""
    (tmp_path / "x.fa").write_text(">good\nACGTACGTACGT\n>protein\nMKLVAW\n")
    for args, message in [([f"--score={tmp_path}/x.fa", f"--output={tmp_path}/y.tsv"], "x.fa: line 4: "),
                          (["--embed=ACGT", "--output=x.npy"], "ACGT: No such file")]:
        done = command(out_dir, *args)
        assert done.returncode == 1 and done.stdout == "" and message in done.stderr
        assert done.stderr.startswith("error: ") and done.stderr.count("\n") == 1
    assert os.listdir(tmp_path) == ["x.fa"]
