"""Instruction tuning: rows, batches, scores."""
import json
import os

import numpy as np
import pytest
import torch

import instruct
from bpe import Tokenizer, alpaca_prompt
from conftest import SMALL, listing
from instruct import (Batches, choice_log_likelihoods, collate, encode_records, matthews, read_tasks,
                      score, table)
from model import GPT, GPTConfig, load_checkpoint
from test_train import CPU, read_log, same, weights

LETTERS = [{"instruction": "Which letter?", "input": "a" * n, "output": "yes" if n % 2 else "no"}
           for n in range(1, 41)]


@pytest.fixture(scope="module")
def tok():
    tok = Tokenizer.train([alpaca_prompt("Which letter?", "a"), "no"] * 5 + ["yes", "no"] * 99, 400)
    assert len(tok.encode("yes")) == len(tok.encode("no")) == 1
    return tok


# -- rows

def test_prompt_is_alpacas():
    assert alpaca_prompt("Add.", "1 2") == (
        "Below is an instruction that describes a task, paired with an input that provides further "
        "context. Write a response that appropriately completes the request.\n\n"
        "### Instruction:\nAdd.\n\n### Input:\n1 2\n\n### Response:\n")
    assert alpaca_prompt("Speak.") == (
        "Below is an instruction that describes a task. Write a response that appropriately "
        "completes the request.\n\n### Instruction:\nSpeak.\n\n### Response:\n")


def test_rows_end_in_end_of_text(tok):
    (prompt, response), *_ = encode_records(LETTERS[:1], tok, 200)
    assert tok.decode(prompt) == alpaca_prompt("Which letter?", "a")
    assert tok.decode(response[:-1]) == "yes" and response[-1] == tok.eot


def test_long_inputs_are_trimmed_never_the_answer(tok, capsys):
    long = [{"instruction": "Which letter?", "input": "ab c, " * 500, "output": "yes, no"},
            {"instruction": "Which letter?", "input": "ACGT" * 500, "output": "yes"},
            {"instruction": "Which letter?" * 500, "input": "", "output": "yes"}]
    rows = encode_records(LETTERS[:1] + long, tok, 100)
    for r, row in zip(long[:2], rows[1:3]):
        assert len(row[0]) + len(row[1]) <= 100 and len(row[0]) + len(row[1]) > 95
        kept = tok.decode(row[0]).split("### Input:\n")[1].split("\n\n### Response:")[0]
        assert r["input"].startswith(kept) and len(kept) > 20
        assert tok.decode(row[0]).endswith("### Response:\n")
        assert tok.decode(row[1][:-1]) == r["output"]
    assert rows[3] is None
    printed = capsys.readouterr().out
    assert "2 of 4 inputs were trimmed" in printed and "1 of 4 records do not fit" in printed


def test_collate_by_hand():
    idx, targets, weights = collate([([5, 6, 7], [8, 0]), ([5], [9, 0])], 0.25)
    assert idx.tolist() == [[5, 6, 7, 8], [5, 9, 0, 0]]
    assert targets.tolist() == [[6, 7, 8, 0], [9, 0, -1, -1]]
    assert weights.tolist() == [[0.25, 0.25, 1, 1], [1, 1, 0, 0]]


def test_prompt_loss_weight(tok):
    """0: the prompt's tokens do not matter; 1: the loss of plain language modelling, the paper's"""
    torch.manual_seed(0)
    model = GPT(GPTConfig(len(tok), 100, 1, 1, 8))
    rows = encode_records(LETTERS[:3], tok, 100)
    idx, targets, weights = collate(rows, 0.0)
    response = torch.zeros_like(targets) - 1
    for i, (p, r) in enumerate(rows):
        response[i, len(p) - 1:len(p) + len(r) - 1] = torch.tensor(r)
    assert model(idx, targets, weights)[1].item() == pytest.approx(model(idx, response)[1].item())
    assert model(*collate(rows, 1.0))[1].item() == pytest.approx(model(idx, targets)[1].item())


def test_batches():
    rng = np.random.default_rng(0)
    rows = [([i], [0] * int(n)) for i, n in enumerate(rng.integers(10, 400, size=1003))]
    batches = Batches(rows, 8, seed=1)
    for epoch in range(2):
        seen = [row[0][0] for k in range(batches.n) for row in batches[epoch * batches.n + k]]
        assert sorted(seen) == list(range(1003))
    assert batches.padding() < 0.05
    again = Batches(rows, 8, seed=1)
    assert [again[k] for k in (200, 3, 125)] == [batches[k] for k in (200, 3, 125)]
    assert [r[0] for r in batches[0]] != [r[0] for r in batches[batches.n]]


# -- scores

def test_choice_log_likelihoods(tok):
    """With the shared cache, and prompts of unlike length, the same as row by row without."""
    torch.manual_seed(0)
    model = GPT(GPTConfig(len(tok), 120, 2, 2, 16)).eval()
    with torch.no_grad():
        for p in model.parameters():
            p.add_(0.2 * torch.randn_like(p))
    prompts = [tok.encode(t) for t in ("a", "Which letter?", "yes no " * 9)]
    choices = [tok.encode(t) + [tok.eot] for t in ("yes", "no", "Which letter? no")] + [[tok.eot]]
    found = choice_log_likelihoods(model, prompts, choices)
    for i, p in enumerate(prompts):
        for j, c in enumerate(choices):
            logp = model(torch.tensor([p + c]))[0][0].log_softmax(-1)
            alone = sum(logp[len(p) - 1 + t, token].item() for t, token in enumerate(c))
            assert found[i, j].item() == pytest.approx(alone, abs=1e-4)


def test_matthews():
    assert matthews([[5, 0], [0, 7]]) == 1 and matthews([[0, 5], [7, 0]]) == -1
    assert matthews([[5, 0], [7, 0]]) == 0      # always the same answer
    tp, fn, fp, tn = 90, 10, 30, 70
    by_hand = (tp * tn - fp * fn) / ((tp + fp) * (tp + fn) * (tn + fp) * (tn + fn)) ** 0.5
    assert matthews([[tn, fp], [fn, tp]]) == pytest.approx(by_hand)
    # three classes, by Gorodkin's formula: (c s - t.p) / sqrt(s^2 - p.p) / sqrt(s^2 - t.t)
    assert matthews([[2, 1, 0], [0, 3, 0], [1, 0, 3]]) == pytest.approx(
        (8 * 10 - (3 * 3 + 3 * 4 + 4 * 3)) / ((100 - 34) ** 0.5 * (100 - 34) ** 0.5))


class Oracle(GPT):
    """Answers "yes" to an odd number of a's in the input and then stops; "no" to an even number,
    and then goes on and on."""

    def __init__(self, tok):
        super().__init__(GPTConfig(len(tok), 200, 1, 1, 4))
        self.tok = tok
        self.answers = {word: tok.encode(word)[0] for word in ("yes", "no")}

    def read(self, rows, room):
        self.odd = [self.tok.decode(r).split("### Input:\n")[1].count("a") % 2 == 1 for r in rows]
        logits = torch.zeros(len(rows), self.config.vocab_size)
        for b, odd in enumerate(self.odd):
            logits[b, self.answers["yes" if odd else "no"]] = 9
        return logits, "a cache", torch.tensor([len(r) for r in rows])

    def forward(self, idx, position=None, cache=None):
        logits = torch.zeros(*idx.shape, self.config.vocab_size)
        for b, odd in enumerate(self.odd):
            logits[b, :, self.tok.eot if odd else self.answers["no"]] = 9
        return logits, None


def test_score(tok):
    records = [r | {"task": "parity", "choices": ["yes", "no"]} for r in LETTERS[:9]] + \
              [r | {"task": "free"} for r in LETTERS[:4]]
    records[0] = records[0] | {"output": "no"}      # the one thing that the oracle gets wrong
    cfg = instruct.InstructConfig(batch_size=4, max_new_tokens=5)
    scores = score(Oracle(tok), tok, records, encode_records(records, tok, 200), cfg, CPU)
    assert scores["tasks"]["parity"] == pytest.approx(
        {"n": 9, "accuracy": 8 / 9, "mcc": matthews([[4, 1], [0, 4]]), "exact_match": 4 / 9,
         "majority": 5 / 9})
    assert scores["tasks"]["free"] == {"n": 4, "accuracy": None, "mcc": None, "exact_match": 0.5,
                                       "majority": 0.5}
    assert scores["mean_accuracy"] == pytest.approx(8 / 9)
    assert "parity" in table(scores) and "0.889" in table(scores)


# -- the whole script

def tune(toy, out, *args):
    instruct.main([*[a for a in SMALL if a.split("=")[0] in
                     ("--batch_size", "--warmup_steps", "--device", "--dtype", "--compile")],
                   f"--init_from={toy}/out", f"--out_dir={out}", "--log_interval=1",
                   "--max_new_tokens=4", *args])


@pytest.fixture
def plain(tmp_path):
    """General instructions, without task or choices, a line each"""
    path = tmp_path / "plain.jsonl"
    path.write_text("".join(json.dumps({"instruction": f"Say {i}.", "output": f"It is {i}."}) + "\n"
                            for i in range(60)))
    return str(path)


def test_plain_instructions_train(toy, tmp_path, plain):
    tune(toy, tmp_path / "out", f"--tasks={plain}", f"--eval_tasks={plain}", "--max_steps=6",
         "--eval_interval=3")
    scores = json.loads((tmp_path / "out/scores.json").read_text())
    assert scores["tasks"]["plain"]["n"] == 60 and scores["tasks"]["plain"]["accuracy"] is None
    assert scores["mean_accuracy"] is None
    losses = [line["loss"] for line in read_log(tmp_path / "out") if "loss" in line]
    assert len(losses) == 6 and losses[-1] < losses[0]
    assert {"config.json", "last.pt", "best.pt", "log.jsonl", "tokenizer.json",
            "scores.json"} == set(os.listdir(tmp_path / "out"))


def test_resumed_equals_uninterrupted(toy, tmp_path, plain):
    args = [f"--tasks={plain}", f"--eval_tasks={plain}", "--eval_interval=4", "--dropout=0.1"]
    tune(toy, tmp_path / "whole", *args, "--max_steps=8")
    with pytest.MonkeyPatch.context() as patch:
        real = instruct.fit
        patch.setattr(instruct, "fit", lambda model, cfg, machine, batches, *rest: real(
            model, cfg, machine, lambda s: batches(s) if s < 6 else 1 / 0, *rest))
        with pytest.raises(ZeroDivisionError):
            tune(toy, tmp_path / "parts", *args, "--max_steps=8")
    tune(toy, tmp_path / "parts", *args, "--max_steps=8", "--resume")
    assert read_log(tmp_path / "parts") == read_log(tmp_path / "whole")
    assert same(weights(tmp_path / "parts"), weights(tmp_path / "whole"))


def test_only_scoring_is_repeatable(toy, tmp_path):
    tasks = f"--eval_tasks={toy}/data/tasks/splice.test.json"
    before = listing(f"{toy}/out")
    results = []
    for _ in range(2):
        tune(toy, tmp_path / "unused", "--epochs=0", tasks)
        results.append(json.loads(open(f"{toy}/out/scores.json").read()))
        os.remove(f"{toy}/out/scores.json")
    assert results[0] == results[1] and results[0]["tasks"]["splice"]["n"] == 36
    assert listing(f"{toy}/out") == before and not os.path.exists(tmp_path / "unused")


def test_refusals(toy, tmp_path, plain):
    for args, message in [(["--tasks=none/*.json"], "none/.*: no such file: run prepare.py"),
                          ([f"--tasks={plain}", f"--init_from={tmp_path}"], "no such checkpoint"),
                          ([f"--tasks={plain}", "--device=cuda:77"], "no such device")]:
        with pytest.raises((ValueError, OSError), match=message):
            tune(toy, tmp_path / "out", f"--eval_tasks={plain}", *args)
    assert not os.path.exists(tmp_path / "out")
    assert load_checkpoint(f"{toy}/out/best.pt")


def test_task_names(tmp_path, plain):
    (tmp_path / "x.train.json").write_text(json.dumps([LETTERS[0] | {"task": "own"}, LETTERS[1]]))
    records = read_tasks([str(tmp_path / "*.json"), plain])
    assert [r["task"] for r in records[:3]] == ["own", "x", "plain"]
