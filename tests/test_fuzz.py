"""Damaged and odd files: each ends in success with sane content or in one line, never in a traceback,
a hang or a half-written folder. FUZZ=10000 tries that many cases instead of 300; case k is a function
of k alone, so that one that fails can be tried again with `pytest -k`."""
import json
import os
import shutil
from collections import Counter

import numpy as np
import pytest
import torch

import config
import prepare
import train
from bpe import Tokenizer
from conftest import listing
from dna import read
from dna.tasks import find_tables, make_examples
from model import GPT, GPTConfig, load_checkpoint, save_checkpoint
from tools.gpt2 import export_gpt2, read_gpt2
from train import TrainConfig

CASES = int(os.environ.get("FUZZ", 300))
NASTY = [b"\x00", b"\xef\xbb\xbf", b"\xff\xfe", b"\r", b"\r\n", b"\n\n", b'"', b"'", b",", b";", b"\t",
         b"null", b"NaN", b"1e999", b"-1", b"[", b"]", b"{", b"}", b"[" * 3000, b"\xe2\x82", b">", b"N" * 50,
         b"A" * 3000, b"  ", b":", b"=", b"\\", b"\\ud800", b"9" * 5000, b"true", b"MKLVWYH", b"\x1f\x8b\x08"]


def mutate(data, rng):
    """A few random edits of some bytes"""
    for _ in range(rng.integers(1, 4)):
        at, n = rng.integers(len(data) + 1), int(rng.integers(1, 40))
        kind = rng.integers(6)
        if kind == 0:
            data = data[:at]                                            # cut short
        elif kind == 1:
            data = data[:at] + NASTY[rng.integers(len(NASTY))] + data[at:]
        elif kind == 2:
            data = data[:at] + data[at + n:]                            # a piece is missing
        elif kind == 3:
            data = data[:at] + data[at:at + n] * 2 + data[at + n:]      # a piece comes twice
        elif kind == 4:
            data = data[:at] + rng.bytes(n) + data[at + n:]             # noise
        else:
            other = rng.integers(len(data) + 1)                         # a piece from elsewhere
            data = data[:at] + data[other:other + n] + data[at + n:]
    return data


# -- what is mutated, and what must hold of it where it is read

def fasta(path):
    for stretch in read.read_dna(path, Counter()):
        assert set(stretch) <= set("ACGT") and len(stretch) >= 8


def table(path):
    (task, tables), = find_tables(path).items()
    for records in make_examples(task, tables, 0).values():
        for r in records:
            assert set(r["input"]) <= set(read.IUPAC) and r["output"] in r["choices"]


def alpaca(path):
    for r in read.read_alpaca(path):
        assert r["instruction"].strip() and r["output"].strip() and isinstance(r["input"], str)
        assert r["output"] in r.get("choices", [r["output"]])


def toml(path):
    cfg = config.from_command_line(TrainConfig, "train", [path])
    assert cfg.batch_size > 0 and cfg.learning_rate > 0 and isinstance(cfg.out_dir, str)


def tokenizer(path):
    tok = Tokenizer.load(path)
    text = "The CAT sat.\nGGCTATAAAAGGGCNN é"
    ids = tok.encode(text)
    assert all(0 <= i < len(tok) for i in ids)
    if tok.decode(ids) != text:
        assert tok.unknown


def bins(path):
    folder = os.path.dirname(path)
    meta, tok = train.read_data(folder)
    ids = train.open_bin(folder, "train.bin", meta)
    windows = train.Windows(ids, 16, 1)
    assert windows.rows(0, 2)[0].shape == (2, 16)


def checkpoint(path):
    model, state = load_checkpoint(path)
    assert model.config.n_layer == 1 and state["step"] == 3


def gpt2(path):
    assert read_gpt2(os.path.dirname(path), 280).config.n_embd == 8


@pytest.fixture(scope="module")
def valid(tmp_path_factory):
    """-> {reader: a valid file that it reads}"""
    folder = tmp_path_factory.mktemp("valid")
    rng = np.random.default_rng(0)

    def dna(n):
        return "".join(rng.choice(list("ACGT"), size=n))

    rows = "".join(f"{dna(40)},{i % 2}\n" for i in range(40))
    record = {"instruction": "Say it.", "input": "", "output": "yes", "choices": ["yes", "no"]}
    tok = Tokenizer.train(["the cell is read", dna(200), dna(200)], 300)
    torch.manual_seed(0)
    model = GPT(GPTConfig(len(tok), 16, 1, 2, 8))
    texts = {"x.fa": f">one\n{dna(100)}\n{dna(50)}nnnn{dna(9)}\n>two\n{dna(30).lower()}\n",
             "x.csv": "sequence,label\n" + rows, "x.json": json.dumps([record] * 9, indent=1),
             "x.jsonl": (json.dumps(record) + "\n") * 9,
             "x.toml": '[train]\nbatch_size = 4\nlearning_rate = 1e-3\nout_dir = "x"\ncompile = "no"\n'}
    for name, text in texts.items():
        (folder / name).write_text(text)
    tok.save(folder / "tokenizer.json")
    save_checkpoint(folder / "x.pt", model, step=3)
    sha256 = config.file_sha256(folder / "tokenizer.json")
    save_checkpoint(folder / "best.pt", model, tokenizer_sha256=sha256)
    export_gpt2(folder, folder / "gpt2")
    for name in ("data", "meta"):
        os.mkdir(folder / name)
        tok.save(folder / name / "tokenizer.json")
        ids = np.array(tok.encode("".join(dna(40) + " " for _ in range(20))), dtype="<u2")
        ids.tofile(folder / name / "train.bin")
        (folder / name / "meta.json").write_text(json.dumps({
            "dtype": "<u2", "vocab_size": len(tok), "modalities": {},
            "bins": {"train.bin": {"documents": 1, "tokens": len(ids), "bases": 800, "bytes": 0}},
            "tokenizer_sha256": config.file_sha256(folder / name / "tokenizer.json")}))
    return [(fasta, folder / "x.fa"), (table, folder / "x.csv"), (alpaca, folder / "x.json"),
            (alpaca, folder / "x.jsonl"), (toml, folder / "x.toml"), (tokenizer, folder / "tokenizer.json"),
            (bins, folder / "data/train.bin"), (bins, folder / "meta/meta.json"), (checkpoint, folder / "x.pt"),
            (gpt2, folder / "gpt2/model.safetensors"), (gpt2, folder / "gpt2/config.json")]


def one_line(error):
    """What config.run would print of an error that the user can fix"""
    text = f"{error.filename}: {error.strerror}" if isinstance(error, OSError) and error.filename \
        else str(error)
    return " ".join(text.split())


def test_valid_files_are_read(valid):
    for reader, path in valid:
        reader(str(path))


def test_mutated_files(valid, tmp_path):
    refused = 0
    for k in range(CASES):
        rng = np.random.default_rng(k)
        reader, source = valid[k % len(valid)]
        folder = tmp_path / "case"
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(source.parent, folder) if source.parent.name != "valid0" else os.mkdir(folder)
        path = folder / source.name
        path.write_bytes(mutate(source.read_bytes(), rng))
        try:
            reader(str(path))
        except (ValueError, OSError) as e:
            refused += 1
            assert source.name.split(".")[0] in one_line(e) or str(folder) in one_line(e), (k, e)
        except Exception as e:
            raise AssertionError(f"case {k}, {reader.__name__}: {type(e).__name__}: {e}") from e
    assert 0.2 * CASES < refused < CASES


def test_mutated_input_leaves_no_half_written_folder(tmp_path, toy):
    """prepare.py on mutated files: a whole folder or none"""
    raw = f"{toy}/data/raw"
    small = tmp_path / "raw"
    os.makedirs(small / "promoter")
    for name, n in (("genome.fa", 60_000), ("english.txt", 60_000)):
        with open(f"{raw}/{name}", "rb") as f:
            (small / name).write_bytes(f.read(n))
    for name in ("train.csv", "test.csv"):
        with open(f"{raw}/promoter/{name}", "rb") as f:
            (small / "promoter" / name).write_bytes(b"".join(f.readlines()[:30]))
    names = ["genome.fa", "english.txt", "promoter/train.csv", "promoter/test.csv"]
    done = 0
    for k in range(max(8, CASES // 40)):
        rng = np.random.default_rng(10_000 + k)
        case = tmp_path / "case"
        shutil.rmtree(case, ignore_errors=True)
        shutil.copytree(small, case / "raw")
        path = case / "raw" / names[k % 4]
        path.write_bytes(mutate(path.read_bytes(), rng))
        before = listing(case)
        try:
            prepare.main([f"--dna={case}/raw/genome.fa", f"--english={case}/raw/english.txt",
                          f"--tasks={case}/raw/promoter", f"--data_dir={case}/data", "--vocab_size=300",
                          "--val_fraction=0.4"])
            train.read_data(f"{case}/data")
            done += 1
        except (ValueError, OSError) as e:
            assert listing(case) == before, (k, e)
            assert not os.path.exists(case / "data") or not os.listdir(case / "data"), (k, e)
    assert done > 1
