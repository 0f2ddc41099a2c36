"""Asking a model."""
import math
import os
import re
import subprocess
import sys

import pytest
import torch

import sample
from bpe import Tokenizer
from model import GPT, GPTConfig, load_checkpoint
from sample import bits_per_base, find_choices, read_message

ROOT = os.path.dirname(os.path.abspath(sample.__file__))


@pytest.mark.parametrize("text,expected", [
    ("Is this a promoter?\nACGTACGTAC\nGGTT", ("Is this a promoter?", "ACGTACGTACGGTT")),
    ("Is this a promoter?\n>chr1 a header\nacgtacgtac\n  ggnn\n", ("Is this a promoter?", "ACGTACGTACGGNN")),
    ("What is\na gene?", ("What is a gene?", "")),
    ("ACGTACGT", ("", "ACGTACGT")),
    ("Is acgtacgtacgtaa a promoter?", ("Is a promoter?", "ACGTACGTACGTAA")),
    ("Say it.\n   1 acgtacgtac gtacgtacgt\n  21 ggggg\n", ("Say it.", "ACGTACGTACGTACGTACGTGGGGG")),
    ("Say it.\r\nACGU\r\n", ("Say it.", "ACGT")),
    ("The cat\nMKLVAW", ("The cat MKLVAW", "")),
    ("", ("", "")),
])
def test_read_message(text, expected):
    assert read_message(text) == expected


def test_find_choices():
    known = [["Non-promoter", "promoter"], ["yes", "no"], ["yes", "no", "perhaps"]]
    assert find_choices("One of: Non-promoter, promoter.", "?", known) == known[0]
    assert find_choices("One of: yes, no, perhaps.", "promoter", known) == known[2]
    assert find_choices("Is it one?", "promoter", known) == known[0]
    assert find_choices("Is it one?", "what", known) == find_choices("Is it?", "x", []) == []


@pytest.mark.parametrize("bases", [8, 9, 40, 400])
def test_bits_per_base(bases):
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
    assert bits_per_base(model, tok, [sequence])[0] == pytest.approx(
        nats / math.log(2) / bases, rel=1e-4)


def ask(*args, text=None):
    return subprocess.run([sys.executable, f"{ROOT}/sample.py", "--device=cpu", *args], input=text,
                          capture_output=True, text=True)


def test_score(toy, tmp_path, capsys):
    fasta = tmp_path / "x.fa"
    fasta.write_text(">one\nACGTACGTACGTTTTT\nNNNNNNNNNN\nGGGGGGGGGG\n>two\n" + "ACGT" * 500 + "\n")
    sample.main([f"--out_dir={toy}/out", f"--score={fasta}", "--device=cpu"])
    head, one, two = [line.split("\t") for line in capsys.readouterr().out.splitlines()]
    assert head == ["bits_per_base", "bases", "record"]
    assert one[1:] == ["26", "one"] and two[1:] == ["2000", "two"]
    model, _ = load_checkpoint(f"{toy}/out/best.pt")
    tok = Tokenizer.load(f"{toy}/out/tokenizer.json")
    a, b = bits_per_base(model.eval(), tok, ["ACGTACGTACGTTTTT", "GGGGGGGGGG"])
    assert float(one[0]) == pytest.approx((16 * a + 10 * b) / 26, abs=1e-4)


def test_answers_and_completes(toy, capsys):
    sample.main([f"--out_dir={toy}/out", "--prompt=The ", "--max_new_tokens=5", "--num_samples=2"])
    assert capsys.readouterr().out.count("The ") == 2
    sample.main([f"--out_dir={toy}/out", "--instruction=Speak.", "--max_new_tokens=5"])
    assert capsys.readouterr().out.startswith("### Instruction:\nSpeak.\n\n### Response:\n")
    sample.main([f"--out_dir={toy}/out", "--instruction=Speak.", "--choices=yes,no", "--max_new_tokens=5"])
    chances = re.search(r"\((yes|no): ([\d.]+)%, (yes|no): ([\d.]+)%\)", capsys.readouterr().out)
    assert {chances[1], chances[3]} == {"yes", "no"} and float(chances[2]) >= float(chances[4])
    assert float(chances[2]) + float(chances[4]) == pytest.approx(100, abs=0.11)
    with pytest.raises(ValueError, match="tokens long, of 256 in all: shorten it"):
        sample.main([f"--out_dir={toy}/out", "--instruction=Speak.", "--choices=" + "long " * 400])
    with pytest.raises(ValueError, match="--input needs an --instruction"):
        sample.main([f"--out_dir={toy}/out", "--input=ACGT"])


def test_chat(toy):
    answer = ask(f"--out_dir={toy}/out", "--chat", "--max_new_tokens=3",
                 text="What is this?\n" + "acgt" * 300 + "\n\n\nACGTACGTAC\n\n" + "word " * 900 + "\n\n")
    assert answer.returncode == 0 and answer.stderr == ""
    assert "Begin with an instruction" in answer.stdout
    assert "the instruction is longer than the 224 tokens that fit" in answer.stdout
    assert "was cut at its end" in answer.stdout


def test_one_clear_line(toy, tmp_path):
    for args, message in [([f"--out_dir={tmp_path}/none"], "none/best.pt: no such checkpoint"),
                          ([f"--out_dir={toy}/out", f"--score={tmp_path}/no.fa"], "no.fa: No such file"),
                          ([f"--out_dir={toy}/out", "--temprature=1"], "did you mean temperature?")]:
        answer = ask(*args)
        assert answer.returncode == 1 and answer.stdout == ""
        assert answer.stderr.startswith("error: ") and answer.stderr.count("\n") == 1
        assert message in answer.stderr


def test_a_tokenizer_from_elsewhere_is_refused(toy, tmp_path):
    os.symlink(f"{toy}/out/best.pt", tmp_path / "best.pt")
    Tokenizer.train(["another corpus"], 260).save(tmp_path / "tokenizer.json")
    with pytest.raises(ValueError, match="tokenizer.json: not the tokenizer"):
        sample.main([f"--out_dir={tmp_path}", "--prompt=x"])
