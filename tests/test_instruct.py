"""Instruction tuning: rows, batches, scores."""
import json
import math
import os
from collections import Counter

import numpy as np
import pytest
import torch

import instruct
import prepare
from bpe import Tokenizer
from conftest import SMALL, listing
from instruct import (Batches, Classifier, InstructConfig, Row, add_shots, collate, collate_labels,
                      compare, count_kmers, encode_records, kmer_floor, matthews, read_tasks, rows_to_tune,
                      score, show, summarize, table, task_shares, with_means)
from model import GPT, GPTConfig, load_checkpoint
from prepare import alpaca_prompt
from test_train import CPU, read_log, same, weights

LETTERS = [{"task": "letters", "instruction": "Which letter?", "input": "a" * n, "output": "yes" if n % 2 else "no"}
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
    row = encode_records(LETTERS[:1], tok, 200)[0]
    prompt, response = row.prompt, row.response
    assert (row.task, row.asks) == ("letters", "Which letter?")
    assert tok.decode(prompt) == alpaca_prompt("Which letter?", "a")
    assert tok.decode(response[:-1]) == "yes" and response[-1] == tok.eot


def test_long_inputs_are_trimmed_never_the_answer(tok, capsys):
    long = [LETTERS[0] | {"input": "ab c, " * 500, "output": "yes, no"},
            LETTERS[0] | {"input": "ACGT" * 2500},
            LETTERS[0] | {"instruction": "Which letter?" * 500, "input": ""}]
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


def row(prompt, response, **more):
    return Row(np.array(prompt), np.array(response), **more)


def test_collate_by_hand():
    idx, targets, weights = collate([row([5, 6, 7], [8, 0]), row([5], [9, 0])], 0.25)
    assert idx.tolist() == [[5, 6, 7, 8], [5, 9, 0, 0]]
    assert targets.tolist() == [[6, 7, 8, 0], [9, 0, -1, -1]]
    assert weights.tolist() == [[0.25, 0.25, 1, 1], [1, 1, 0, 0]]
    # what all prompts begin with stands apart; of the shorter prompt one token is left
    idx, targets, weights, prefix = collate([row([5, 6, 7], [8, 0]), row([5, 6], [9, 0])], 0.0)
    assert prefix.tolist() == [5]
    assert idx.tolist() == [[6, 7, 8], [6, 9, 0]]
    assert targets.tolist() == [[7, 8, 0], [9, 0, -1]]
    assert weights.tolist() == [[0, 1, 1], [1, 1, 0]]


def test_a_prefix_changes_nothing(tok):
    """The same loss and gradients as with whole rows"""
    torch.manual_seed(0)
    model = GPT(GPTConfig(len(tok), 200, 2, 2, 16))
    rows = encode_records(LETTERS[:9], tok, 200)
    shared, whole = collate(rows, 0.0), collate(rows, 1e-30)
    assert len(shared) == 4 and len(shared[3]) > 20 and len(whole) == 3
    whole = (*whole[:2], (whole[2] == 1).float())
    gradients = []
    for batch in (shared, whole):
        model.zero_grad()
        loss = model(*batch)[1]
        loss.backward()
        gradients.append([loss.detach()] + [p.grad.clone() for p in model.parameters()])
    for a, b in zip(*gradients):
        torch.testing.assert_close(a, b, atol=1e-6, rtol=1e-4)
    assert model.training_flops(*shared) < 0.5 * model.training_flops(*whole)


def test_prompt_loss_weight(tok):
    """0: the prompt's tokens do not matter; 1: the loss of plain language modelling, the paper's"""
    torch.manual_seed(0)
    model = GPT(GPTConfig(len(tok), 100, 1, 1, 8))
    rows = encode_records(LETTERS[:3], tok, 100)
    idx, targets, weights = collate(rows, 1.0)
    response = torch.zeros_like(targets) - 1
    for i, r in enumerate(rows):
        response[i, len(r.prompt) - 1:len(r.prompt) + len(r.response) - 1] = torch.from_numpy(
            r.response.astype(np.int64))
    assert model(*collate(rows, 0.0))[1].item() == pytest.approx(model(idx, response)[1].item())
    assert model(idx, targets, weights)[1].item() == pytest.approx(model(idx, targets)[1].item())


def numbered(lengths, tasks=("",)):
    return [row([i], [0] * int(n), task=tasks[i % len(tasks)], asks=f"{tasks[i % len(tasks)]} {i % 7}")
            for i, n in enumerate(lengths)]


def test_batches():
    rows = numbered(np.random.default_rng(0).integers(10, 400, size=1003))
    batches = Batches(rows, 8, seed=1)
    assert batches.n == 126
    alike = 0
    for epoch in range(2):
        found = [batches[epoch * batches.n + k] for k in range(batches.n)]
        assert sorted(r.prompt[0] for batch in found for r in batch) == list(range(1003))
        alike += sum(len({r.asks for r in batch}) == 1 for batch in found)
    assert alike > 2 * 115      # but for what is left over, a batch asks one thing
    assert batches.padding() < 0.05
    again = Batches(rows, 8, seed=1)
    assert [again[k] for k in (200, 3, 125)] == [batches[k] for k in (200, 3, 125)]
    assert [r.prompt for r in batches[0]] != [r.prompt for r in batches[batches.n]]


@pytest.mark.parametrize("balance,share,expected", [
    (0.0, 0.0, {"a": 800, "b": 200}), (1.0, 0.0, {"a": 500, "b": 500}),
    (0.5, 0.0, {"a": 667, "b": 333}), (0.0, 0.1, {"a": 960, "b": 240, "chat": 133})])
def test_balance_and_general_share(balance, share, expected):
    tasks = {"a": 800, "b": 200} | ({"chat": 333} if share else {})
    rows = [row([i], [0], task=t) for i, t in enumerate(t for t, n in tasks.items() for _ in range(n))]
    records = [{"task": r.task} for r in rows]
    cfg = InstructConfig(balance=balance, general_share=share)
    shares = task_shares([r for r in records if r["task"] != "chat"],
                         [r for r in records if r["task"] == "chat"], cfg)
    assert (shares is None) == (balance == share == 0)
    batches = Batches(rows, 10, 1, shares)
    found = [r for k in range(batches.n) for r in batches[k]]
    assert Counter(r.task for r in found) == expected
    for task, n in expected.items():        # none of them again before all have been seen
        times = Counter(int(r.prompt[0]) for r in found if r.task == task)
        assert max(times.values()) == math.ceil(n / tasks[task])
    # where an epoch has but a part of a task, the next one goes on with the rest of it
    if n < tasks[task]:
        later = {int(r.prompt[0]) for k in range(batches.n) for r in batches[batches.n + k]}
        assert not later & set(times)


def test_other_strand_in_tuning(tok):
    records = [LETTERS[0] | {"task": t, "input": "AACGTTTGGA"} for t in ("tf_1", "splice")] * 50
    cfg = InstructConfig(reverse_complement=0.5)
    rows = rows_to_tune(records, lambda r: encode_records(r, tok, 200), cfg)
    batches = Batches(rows, 10, 1, turn=0.5)
    found = Counter((r.task, "TCCAAACGTT" in tok.decode(r.prompt)) for k in range(batches.n)
                    for r in batches[k])
    assert found["splice", False] == 50 and found["splice", True] == 0
    assert 10 < found["tf_1", True] < 40 and found["tf_1", True] + found["tf_1", False] == 50


# -- worked examples

DNA = [{"task": "t", "instruction": "Which?", "input": s, "output": o, "choices": ["yes", "no"]}
       for s, o in [("AAAAAAAAAAAA", "yes"), ("ACACACACACAC", "no"), ("GATTACAGATTACA", "yes"),
                    ("GGGGGGGGGGGG", "no"), ("TTTTTTTTTTTT", "yes")]]


def test_nearest_examples():
    queries = [DNA[0] | {"input": s} for s in ("CACACACACACG", "GATTACAGATTACT")]
    cfg = InstructConfig(shots=2, nearest=True)
    found = add_shots(queries, DNA, cfg)
    assert [r["shots"][0] for r in found] == [("ACACACACACAC", "no"), ("GATTACAGATTACA", "yes")]
    assert all(len(r["shots"]) == 2 for r in found)
    assert show(found[1], 1) == "GATTACAGATTACA: yes\nGATTACAGATTACT"
    assert show(found[1], 2).endswith(show(found[1], 1))    # the nearest stands last


@pytest.mark.parametrize("nearest", [True, False])
def test_no_record_is_its_own_example(nearest):
    cfg = InstructConfig(shots=9, nearest=nearest)
    for r, found in zip(DNA, add_shots(DNA, DNA, cfg)):
        sequences = [s for s, _ in found["shots"]]
        assert r["input"] not in sequences and len(set(sequences)) == len(sequences) > 0
        assert prepare.reverse_complement(r["input"]) not in sequences
    assert add_shots(DNA, DNA, cfg) == add_shots(DNA, DNA, cfg)


def test_examples_that_do_not_fit_are_left_out(tok, capsys):
    r = DNA[0] | {"shots": [("ACGT" * 5, "yes"), ("GGGG" * 5, "no"), ("TTTT" * 5, "no")]}
    whole, = encode_records([r], tok, 500)
    assert len(tok.decode(whole.prompt).split(": ")) == 4
    short, = encode_records([r], tok, len(whole.prompt) + 1)
    assert "ACGT" * 5 + ": yes\n" + DNA[0]["input"] in tok.decode(short.prompt)
    assert "TTTT" * 5 not in tok.decode(short.prompt)
    assert "2.0 worked examples a prompt fit into" in capsys.readouterr().out


def test_kmer_floor_finds_a_word():
    rng = np.random.default_rng(0)

    def record(word):
        s = "".join(rng.choice(list("ACGT"), size=40))
        return {"input": s[:20] + word + s[20:], "output": "with" if word else "without"}

    records = [record("GATTACAT" if i % 2 else "") for i in range(600)]
    confusion = kmer_floor(records[:500], records[500:], ["with", "without"])
    assert confusion.sum() == 100 and confusion.trace() > 95
    assert count_kmers(["AAAAAAA", "ACGTAC"]).sum(axis=1).tolist() == [2, 1]


# -- scores

def test_log_likelihoods(tok):
    """With the shared cache, and prompts of unlike length, the same as row by row without."""
    torch.manual_seed(0)
    model = GPT(GPTConfig(len(tok), 120, 2, 2, 16)).eval()
    with torch.no_grad():
        for p in model.parameters():
            p.add_(0.2 * torch.randn_like(p))
    prompts = [tok.encode("Which letter?" + t) for t in ("a", " Which letter?", "yes no " * 9)]
    choices = [tok.encode(t) + [tok.eot] for t in ("yes", "no", "Which letter? no")] + [[tok.eot]]
    found, greedy = model.log_likelihoods(prompts, choices)
    for i, p in enumerate(prompts):
        written = model.generate([p], 5, temperature=0, stop=tok.eot)[0]
        for j, c in enumerate(choices):
            logp = model(torch.tensor([p + c]))[0][0].log_softmax(-1)
            alone = sum(logp[len(p) - 1 + t, token].item() for t, token in enumerate(c))
            assert found[i, j].item() == pytest.approx(alone, abs=1e-4)
            assert greedy[i, j].item() == (written == c)
    written = [model.generate([p], 3, temperature=0)[0] for p in prompts]
    assert model.log_likelihoods(prompts, written)[1].diagonal().all()


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
    scores = score(Oracle(tok), tok, records, InstructConfig(batch_size=1), CPU)
    assert scores["parity"].pop("mcc_interval") == summarize(np.array([[4, 1], [0, 4]]))["mcc_interval"]
    assert scores["parity"] == pytest.approx(
        {"n": 9, "accuracy": 8 / 9, "mcc": matthews([[4, 1], [0, 4]]), "exact_match": 4 / 9,
         "majority": 5 / 9})
    assert scores["free"] == {"n": 4, "accuracy": None, "mcc": None, "mcc_interval": None,
                              "exact_match": 0.5, "majority": 0.5}
    result = with_means(scores)
    assert result["mean_accuracy"] == pytest.approx(8 / 9) and "mean_kmer_mcc" not in result
    text = table(result)
    assert "parity" in text and "0.889" in text and "6-mers" not in text and "not tuned" not in text
    scores["parity"] |= {"tuned": False, "kmer_mcc": 0.25}
    assert "parity *" in table(with_means(scores)) and "0.250" in table(with_means(scores))


def test_a_choice_that_begins_another(tok):
    """<|endoftext|> is part of a choice, so the shorter one does not win by being shorter."""
    class Writer(Oracle):       # "yes, no" and then stops
        def forward(self, idx, position=None, cache=None):
            logits = torch.zeros(*idx.shape, self.config.vocab_size)
            ids = tok.encode("yes, no") + [tok.eot]
            follows = dict(zip(ids, ids[1:]))
            for (b, t), i in np.ndenumerate(idx.numpy()):
                logits[b, t, follows.get(i, tok.eot)] = 9
            return logits, None

    model = Writer(tok)
    assert tok.encode("yes, no")[0] == model.answers["yes"]
    record = LETTERS[0] | {"choices": ["yes", "yes, no", "no"]}
    cfg = InstructConfig()
    assert score(model, tok, [record | {"output": "yes"}], cfg, CPU)["letters"]["accuracy"] == 0
    assert score(model, tok, [record | {"output": "yes, no"}], cfg, CPU)["letters"]["accuracy"] == 1


def test_both_strands(tok):
    """The mean of what the model says of the two; only where the strand does not matter"""
    class CountsA(Oracle):      # the more A's, the likelier "yes": even chances at seven
        def read(self, rows, room):
            logits, cache, lengths = super().read(rows, room)
            for b, r in enumerate(rows):
                logits[b, self.answers["yes"]] = 9 + tok.decode(r).split("Input:")[1].count("A") - 7
                logits[b, self.answers["no"]] = 9
            return logits, cache, lengths

    def accuracy(task, sequence, **more):
        record = LETTERS[0] | {"task": task, "input": sequence, "choices": ["yes", "no"]}
        return score(CountsA(tok), tok, [record], InstructConfig(**more), CPU)[task]["accuracy"]

    forward = "A" * 8 + "CTCTCT"        # by itself "yes", its other strand, with three A's, "no"
    turned = prepare.reverse_complement(forward)
    assert (accuracy("tf", forward), accuracy("tf", turned)) == (1, 0)
    assert accuracy("tf", forward, both_strands=True) == accuracy("tf", turned, both_strands=True) == 0
    assert accuracy("splice", forward, both_strands=True) == 1


def test_interval():
    """That of a coin: 1.96 standard errors each side"""
    low, high = summarize(np.array([[250, 250], [250, 250]]))["mcc_interval"]
    assert low == pytest.approx(-1.96 / 1000 ** 0.5, rel=0.1)
    assert high == pytest.approx(1.96 / 1000 ** 0.5, rel=0.1)
    assert summarize(np.array([[5, 0], [0, 7]]))["mcc_interval"] == pytest.approx([1, 1])


def test_compare(tmp_path):
    for name, mccs in {"a": {"x": 0.1, "y": 0.5}, "b": {"x": 0.3, "y": 0.7}, "c": {"x": -0.2}, "d": {"z": 0.1}}.items():
        (tmp_path / name).mkdir()
        (tmp_path / name / "scores.json").write_text(json.dumps(
            {"tasks": {task: {"mcc": mcc} for task, mcc in mccs.items()}}))
    text = compare([f"{tmp_path}/a+{tmp_path}/b", f"{tmp_path}/c/scores.json"])
    *_, head, x, y, mean = text.splitlines()
    assert x.split() == ["x", "0.200", "±", "0.141", "-0.200"]
    assert y.split() == ["y", "0.600", "±", "0.141"]
    assert mean.split() == ["mean", "of", "1", "0.200", "±", "0.141", "-0.200"]
    assert "mean" not in compare([f"{tmp_path}/a", f"{tmp_path}/d"])
    (tmp_path / "wrong.json").write_text("[]")
    with pytest.raises(ValueError, match="wrong.json: not a scores.json"):
        compare([f"{tmp_path}/wrong.json"])


# -- the whole script

def tune(toy, out, *args):
    instruct.main([*[a for a in SMALL if a.split("=")[0] in
                     ("--batch_size", "--warmup_steps", "--device", "--dtype", "--compile")],
                   f"--init_from={toy}/out", f"--out_dir={out}", "--log_interval=1", *args])


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


def test_left_out_general_and_floors(toy, tmp_path, plain, capsys):
    tune(toy, tmp_path / "out", f"--tasks={toy}/data/tasks/*.train.json", f"--general={plain}",
         f"--eval_tasks={toy}/data/tasks/*.test.json", "--leave_out=tf,spl*", "--balance=1", "--max_steps=4",
         "--reverse_complement=0.5", "--both_strands")
    result = json.loads((tmp_path / "out/scores.json").read_text())
    assert {t: s["tuned"] for t, s in result["tasks"].items()} == {
        "core_promoter": True, "promoter": True, "splice": False, "tf": False}
    for s in result["tasks"].values():
        assert s["n"] in (24, 36) and -1 <= s["zero_shot_mcc"] <= 1
        assert s["mcc_interval"][0] <= s["mcc"] <= s["mcc_interval"][1]
    assert result["tasks"]["core_promoter"]["kmer_mcc"] > 0.5
    printed = capsys.readouterr().out
    assert "rows of 3 tasks" in printed and "tf *" in printed and "zero-shot mcc" in printed
    state = load_checkpoint(str(tmp_path / "out/best.pt"))[1]
    assert state["choices"] == [["Non-promoter", "promoter"]]
    with pytest.raises(ValueError, match=r"leave_out=\*: no task is left"):
        tune(toy, tmp_path / "no", f"--tasks={plain}", f"--eval_tasks={plain}", "--leave_out=*")


def test_few_shot(toy, tmp_path):
    args = [f"--tasks={toy}/data/tasks/tf.train.json", f"--eval_tasks={toy}/data/tasks/tf.test.json",
            "--shots=2", "--nearest"]
    tune(toy, tmp_path / "unused", *args, "--epochs=0", f"--scores={tmp_path}/few.json")
    assert json.loads((tmp_path / "few.json").read_text())["tasks"]["tf"]["n"] == 24
    assert not os.path.exists(f"{toy}/out/scores.json")
    tune(toy, tmp_path / "out", *args, "--max_steps=2", "--floors=false")
    assert "kmer_mcc" not in json.loads((tmp_path / "out/scores.json").read_text())["tasks"]["tf"]


def test_classifier_by_hand():
    torch.manual_seed(0)
    model = Classifier(GPTConfig(9, 10, 2, 2, 8), 3)
    rows = [row([0, 5, 6, 0], [2]), row([0, 7, 0], [1])]
    idx, targets = collate_labels(rows)
    assert idx.tolist() == [[0, 5, 6, 0], [0, 7, 0, 0]]
    assert targets.tolist() == [[-1, -1, -1, 2], [-1, -1, 1, -1]]
    logits, loss = model(idx, targets)
    assert logits.shape == (2, 3)
    alone = [model(torch.tensor([r.prompt.tolist()]), torch.tensor([[-1] * (len(r.prompt) - 1) + [0]]))[0][0]
             for r in rows]
    torch.testing.assert_close(logits, torch.stack(alone))
    assert loss.item() == pytest.approx(-(logits[0].log_softmax(0)[2] + logits[1].log_softmax(0)[1]).item() / 2)


def test_classification_tuning(toy, tmp_path):
    """One model a task; the core promoters of the toy world have their TATA box at one place."""
    keys = ["--classify", f"--tasks={toy}/data/tasks/[cp]*.train.json", "--floors=false",
            f"--eval_tasks={toy}/data/tasks/*.test.json", "--epochs=6", "--learning_rate=1e-2",
            "--optimizer=muon", "--gradient_accumulation_steps=1", "--either_strand=core*", "--both_strands",
            "--reverse_complement=0.5"]
    tune(toy, tmp_path / "out", *keys)
    result = json.loads((tmp_path / "out/scores.json").read_text())
    assert set(result["tasks"]) == {"core_promoter", "promoter"}
    assert result["tasks"]["core_promoter"]["accuracy"] > 0.7
    assert sorted(os.listdir(tmp_path / "out")) == ["core_promoter", "promoter", "scores.json"]
    files = ["config.json", "log.jsonl", "scores.json", "tokenizer.json"]
    assert sorted(os.listdir(tmp_path / "out/promoter")) == files

    # Stopped in its second task, it goes on there. It does not take what another configuration gave.
    log = (tmp_path / "out/core_promoter/log.jsonl").read_bytes()
    os.remove(tmp_path / "out/promoter/scores.json")
    (tmp_path / "out/promoter/last.pt").write_text("half of it")
    tune(toy, tmp_path / "out", *keys, "--resume")
    again = json.loads((tmp_path / "out/scores.json").read_text())
    assert again["tasks"] == result["tasks"]
    assert (tmp_path / "out/core_promoter/log.jsonl").read_bytes() == log
    assert sorted(os.listdir(tmp_path / "out/promoter")) == files
    tune(toy, tmp_path / "out", *keys, "--resume", "--epochs=1")
    assert json.loads((tmp_path / "out/scores.json").read_text())["tasks"] != result["tasks"]


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


GOOD = {"instruction": "Say it.", "output": "It."}


def test_task_names(tmp_path, plain):
    (tmp_path / "x.train.json").write_text(json.dumps([GOOD | {"task": "own"}, GOOD]))
    records = read_tasks([str(tmp_path / "*.json"), plain])
    assert [r["task"] for r in records[:3]] == ["own", "x", "plain"]
