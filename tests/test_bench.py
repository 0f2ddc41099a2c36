"""The baseline of 6-mers, and benchmarks."""
import json
import os
import re
import shutil
from collections import Counter

import numpy as np
import pytest
import torch
from conftest import SMALL, listing, merge
from torch.nn import functional as F

import config
import train
from bench import in_turn, step, vs_transformers
from config.machine import Machine
from dna.metrics import add_baselines
from model import load_checkpoint
from tools import kmers
from train import TrainConfig


def random_dna(rng, length, letters="ACGT"):
    return "".join(rng.choice(list(letters), size=length))


def load(path):
    with open(path, encoding="utf-8") as f:
        return json.load(f)


def write(path, examples):
    path.write_text(json.dumps(examples))


@pytest.fixture
def tasks(toy, tmp_path):
    """-> a copy of the toy world's tasks"""
    return shutil.copytree(f"{toy}/data/tasks", tmp_path / "tasks")


# -- 6-mers

def test_kmer_roots_by_hand():
    roots = kmers.kmer_roots(["AAAAAAA", "ACGTAC", "ACGTACNCGTACG", "", "ACGT"]).to_dense()
    assert roots.shape == (5, 4096)
    assert roots[0, 0].item() == pytest.approx(2 ** 0.5) and roots[0].count_nonzero() == 1
    acgtac, cgtacg = int("012301", 4), int("123012", 4)
    assert roots[1].nonzero().tolist() == [[acgtac]]
    assert roots[2].nonzero().tolist() == [[acgtac], [cgtacg]]      # none across the N
    assert roots[3:].count_nonzero() == 0


def test_kmer_roots_equal_naive_counts():
    rng = np.random.default_rng(0)
    sequences = [random_dna(rng, rng.integers(80), "ACGTNR") for _ in range(50)] + ["A" * 300]
    roots = kmers.kmer_roots(sequences).to_dense()
    for sequence, row in zip(sequences, roots):
        naive = Counter(sequence[i:i + 6] for i in range(len(sequence) - 5))
        naive = {word: n for word, n in naive.items() if set(word) <= set("ACGT")}
        assert row.square().sum().item() == pytest.approx(sum(naive.values()))
        for word, n in naive.items():
            index = int(word.translate(str.maketrans("ACGT", "0123")), 4)
            assert row[index].item() == pytest.approx(n ** 0.5)


def test_the_fit_is_at_a_minimum():
    """Where autograd, on the dense matrix, finds no slope either"""
    rng = np.random.default_rng(0)
    x = kmers.kmer_roots([random_dna(rng, 30) for _ in range(40)])
    y = torch.tensor(rng.integers(3, size=40))
    weight, bias = (t.requires_grad_() for t in kmers.fit(x, y, 3, decay=0.01))
    loss = F.cross_entropy(x.to_dense() @ weight + bias, y) + 0.01 * weight.square().sum()
    loss.backward()
    assert max(weight.grad.abs().max(), bias.grad.abs().max()) < 1e-3
    assert 0 < loss.item() < np.log(3)


def with_motif(rng, motif):
    sequence = random_dna(rng, 40)
    return {"task": "motif", "instruction": "Is it there?",
            "input": sequence[:20] + motif + sequence[20:], "output": "with" if motif else "without",
            "choices": ["with", "without"]}


def test_kmers_find_a_motif():
    rng = np.random.default_rng(0)
    examples = [with_motif(rng, "GATTACAT" if i % 2 else "") for i in range(600)]
    scores = kmers.score_task(examples[:500], examples[500:], kmers.predict)
    assert scores["n"] == 100 and scores["accuracy"] > 0.95 and scores["majority"] == 0.5
    assert scores["mcc_interval"][0] <= scores["mcc"] <= scores["mcc_interval"][1]


def test_6mers_of_the_toy_world(tasks, capsys):
    kmers.main([str(tasks)])
    result = load(tasks / "scores/kmer.json")
    assert list(result["tasks"]) == ["core_promoter", "promoter", "splice", "tf"]
    assert result["tasks"]["core_promoter"]["mcc"] > 0.5 and result["mean_mcc"] > 0.5
    printed = capsys.readouterr().out
    assert "splice" in printed and printed.endswith(f"wrote {tasks}/scores/kmer.json\n")

    # instruct.py adds it
    scores = {"tf": {"mcc": 0.0}}
    add_baselines(scores, [str(tasks / "tf.test.json")])
    assert scores["tf"]["kmer_mcc"] == result["tasks"]["tf"]["mcc"]


def test_a_broken_baseline_is_left_out(tmp_path, capsys):
    """One word of it, and the scores of a long run are not lost."""
    (tmp_path / "scores").mkdir()
    write(tmp_path / "scores/mine.json", [])
    scores = {"tf": {"mcc": 0.0}}
    add_baselines(scores, [str(tmp_path / "tf.test.json")])
    assert scores == {"tf": {"mcc": 0.0}}
    assert re.fullmatch(r".*/mine.json: not a scores.json .*: left out\n", capsys.readouterr().out)


def test_which_rows_6mers_score(tmp_path):
    rng = np.random.default_rng(0)
    examples = [with_motif(rng, "GATTACAT" if i % 2 else "") for i in range(60)]
    for name, part in (("train", examples[:40]), ("test", examples[40:50]), ("dev", examples[40:])):
        write(tmp_path / f"motif.{name}.json", part)
    path = tmp_path / "scores/kmer.json"
    kmers.main([str(tmp_path)])         # test, if there is any
    assert load(path)["tasks"]["motif"]["n"] == 10

    # a task without DNA has no score, and nothing is written
    before = path.read_text()
    write(tmp_path / "motif.train.json", [e | {"input": "in words"} for e in examples[:40]])
    with pytest.raises(ValueError, match="no task with rows to score, and 20 training rows"):
        kmers.main([str(tmp_path)])
    with pytest.raises(ValueError, match="no NAME.train.json"):
        kmers.main([str(tmp_path / "scores")])
    assert path.read_text() == before


# -- the time of a step

def test_step_reports_where_the_time_goes(toy, monkeypatch, capsys):
    monkeypatch.setattr(Machine, "matmul_rate", lambda self: 1e11)
    before = listing(toy)
    step.main([*SMALL, f"--data_dir={toy}/data"])
    out = capsys.readouterr().out
    assert re.search(r"[\d,]+ tokens/s, [\d.,]+ ms per step of 1,024 tokens\nMFU [\d.]+% of 0.1 "
                     r"TFLOP/s, as measured between the steps\npeak memory [\d.]+ GiB\n", out)
    shares = [float(x) for x in re.findall(r"^[a-z, ]+ ([\d.]+)%$", out, re.MULTILINE)]
    assert len(shares) == 3 and 80 < sum(shares) < 120
    assert listing(toy) == before


def test_step_computes_what_training_does(toy, tmp_path, monkeypatch):
    """The weights after the bench's steps are those of a run of train.py."""
    monkeypatch.setattr(step, "WARMUP", 1)
    monkeypatch.setattr(step, "STEPS", 5)
    args = merge(*SMALL, f"--data_dir={toy}/data", "--max_steps=6", "--grad_clip=0.5", "--motifs=8",
                 "--gradient_accumulation_steps=2")
    train.main([*args, f"--out_dir={tmp_path}/out"])
    model = step.bench(config.from_command_line(step.StepConfig, "train", args))
    expected = load_checkpoint(f"{tmp_path}/out/last.pt")[1]["model"]
    found = model.state_dict()
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[key], expected[key]) for key in found)


# -- beside transformers

def test_vs_transformers(toy, monkeypatch, capsys):
    pytest.importorskip("transformers")
    monkeypatch.setattr(vs_transformers, "STEPS", 2)
    args = [*SMALL, f"--data_dir={toy}/data"]
    cfg = config.from_command_line(TrainConfig, "train", args)
    for name in vs_transformers.MAKERS:
        assert 0 < vs_transformers.measure(name, cfg) < 10
    seconds = {"nanoDNAHLM": [1, 3, 5], "transformers": [6, 7, 8]}
    monkeypatch.setattr(vs_transformers, "in_turn", lambda *args: seconds)
    capsys.readouterr()
    vs_transformers.main(args)
    ours, theirs = capsys.readouterr().out.splitlines()
    assert re.fullmatch(r"nanoDNAHLM +341 tokens/s, 3,000.0 ms per step, 2.33 times .*", ours)
    assert theirs.endswith("7,000.0 ms per step, 1.00 times as fast as transformers")


def measure_nothing(name, n):
    """-> what called it, and in which process; ValueError for some"""
    if name == "wrong":
        raise ValueError("wrong: no such thing")
    return name * n, os.getpid()


def test_in_turn():
    """Each time in a new process, whose errors are raised here"""
    results = in_turn(measure_nothing, ["a", "b"], 2, 3)
    assert {name: [text for text, _ in runs] for name, runs in results.items()} == {
        "a": ["aaa"] * 2, "b": ["bbb"] * 2}
    assert len({os.getpid(), *(process for runs in results.values() for _, process in runs)}) == 5
    with pytest.raises(ValueError, match="wrong: no such thing"):
        in_turn(measure_nothing, ["wrong"], 1, 1)
