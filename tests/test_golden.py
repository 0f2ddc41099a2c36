"""Golden figures: a small run must give the losses and the text that it gave when they were noted.
They catch a change of data order, of an optimizer or of the network that nobody intended."""
import json

import numpy as np
import pytest
from test_train import read_log

import config
import train
from bpe import Tokenizer
from conftest import SMALL

# noted at commit 8c79995, whose code gives these to the last bit; another processor rounds differently
LOSSES = {1: 5.998428, 5: 5.483208, 10: 4.957557, 15: 4.785147, 20: 4.672678}
BITS = (2.034862, 1.801284)


@pytest.fixture
def data(tmp_path):
    """A data folder made by hand, the same whatever prepare.py does: DNA with a motif, and prose"""
    rng = np.random.default_rng(0)
    dna = ["".join(rng.choice(list("ACGT"), size=200)) + "GGGCGGTATAAAAG" * 3 for _ in range(60)]
    prose = [f"Gene {i} was read {i * i} times by the cell, and then it was silent." for i in range(150)]
    tok = Tokenizer.train(dna + prose, 400)
    tok.save(tmp_path / "tokenizer.json")
    parts = {"train.bin": dna[10:] + prose[10:], "val_dna.bin": dna[:10], "val_english.bin": prose[:10]}
    bins = {}
    for name, docs in parts.items():
        ids = np.array([tok.eot] + [i for doc in docs for i in [*tok.encode(doc), tok.eot]], dtype="<u2")
        ids.tofile(tmp_path / name)
        bins[name] = {"documents": len(docs), "tokens": len(ids), "bases": sum(map(len, docs)),
                      "bytes": sum(map(len, docs))}
    (tmp_path / "meta.json").write_text(json.dumps({
        "dtype": "<u2", "vocab_size": len(tok), "bins": bins,
        "modalities": {"dna": "base", "english": "byte"},
        "tokenizer_sha256": config.file_sha256(tmp_path / "tokenizer.json")}))
    return tmp_path


def test_a_small_run_gives_what_it_gave(data):
    train.main([*SMALL, "--max_steps=20", "--eval_interval=10", "--log_interval=1", "--dropout=0.1",
                "--gradient_accumulation_steps=2", f"--data_dir={data}", f"--out_dir={data}/out"])
    log = read_log(data / "out")
    losses = {line["step"]: line["loss"] for line in log if "loss" in line}
    assert {step: losses[step] for step in LOSSES} == pytest.approx(LOSSES, rel=1e-3)
    assert (log[-1]["bits_per_base"], log[-1]["bits_per_byte"]) == pytest.approx(BITS, rel=1e-3)
