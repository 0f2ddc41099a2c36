"""Instruction tuning: rows, batches, scores."""
import json
import math
import os
import re
import shutil
import subprocess
import sys
import types
from collections import Counter

import numpy as np
import pytest
import torch
from test_train import CPU, read_log, same, weights

import instruct
import sample
from bpe import Tokenizer
from conftest import LETTERS, SMALL, listing, merge, random_dna
from dna import tasks
from dna.metrics import add_baselines, judge, matthews, mcc_interval, table, with_means
from dna.read import reverse_complement
from dna.tasks import alpaca_parts, alpaca_prompt, other_strand
from instruct import (InstructConfig, Row, collate, encode_prompts, encode_rows, epoch_batches,
                      label_probabilities, load_for_prompts, max_prompt_len, print_room, score)
from model import GPT, GPTConfig, load_checkpoint


@pytest.fixture(scope="module")
def tok():
    tok = Tokenizer.train([alpaca_prompt("Which letter?", "a"), "no"] * 5 + ["yes", "no"] * 99, 400)
    assert len(tok.encode("yes")) == len(tok.encode("no")) == 1
    return tok


def row(prompt, response, task="", instruction=""):
    return Row(np.array(prompt), np.array(response), task, instruction)


def test_collate_by_hand(monkeypatch):
    monkeypatch.setattr(instruct, "ROUND_TO", 1)
    # what all prompts begin with stands apart; one token is left of the shorter prompt
    rows = [row([5, 6, 7], [8, 0]), row([5, 6], [9, 0])]
    idx, targets, prefix = collate(rows, 64)
    assert prefix.tolist() == [5]
    assert idx.tolist() == [[6, 7, 8], [6, 9, 0]]
    assert targets.tolist() == [[-1, 8, 0], [9, 0, -1]]
    # only the last tokens have targets
    idx, targets, prefix = collate([row([5, 6, 7, 4], [8, 0]), row([5, 7, 7, 4], [9, 0])], 64)
    assert (prefix.tolist(), idx.tolist()) == ([5], [[6, 7, 4, 8], [7, 7, 4, 9]])
    assert targets.tolist() == [[8, 0], [9, 0]]
    # with a loss on the prompt there is no prefix
    idx, targets, prefix = collate(rows, 64, prompt_loss=True)
    assert (prefix.tolist(), idx.tolist()) == ([], [[5, 6, 7, 8], [5, 6, 9, 0]])
    assert targets.tolist() == [[6, 7, 8, 0], [6, 9, 0, -1]]
    # nor where prompts have nothing in common
    idx, targets, prefix = collate([row([5, 6], [8, 0]), row([7], [9, 0])], 64)
    assert prefix.tolist() == [] and idx.tolist() == [[5, 6, 8], [7, 9, 0]]
    assert targets.tolist() == [[-1, 8, 0], [9, 0, -1]]
    # nor where instructions are mixed: then rows have few lengths
    idx, targets, prefix = collate(rows, 64, mix_instructions=True)
    assert prefix.tolist() == [] and idx.shape == (2, 32) and idx[1, :4].tolist() == [5, 6, 9, 0]
    assert targets[0, :5].tolist() == [-1, -1, 8, 0, -1]


def test_batches_have_few_shapes():
    """Lengths are multiples, but never more than the context holds."""
    rng = np.random.default_rng(0)
    for _ in range(100):
        shared, n = rng.integers(1, 30, size=2)
        rows = [row([1] * shared + [2 + i] + [3] * (n + i), [5, 0]) for i in range(4)]
        longest = shared + 1 + n + 3 + 2
        for block_size in (longest, longest + 1, 64 + longest):
            idx, targets, prefix = collate(rows, block_size)
            assert len(prefix) % 8 == 0 and len(prefix) <= shared < len(prefix) + 8
            assert idx.size(1) % 8 == 0 or len(prefix) + idx.size(1) == block_size
            assert longest - 1 <= len(prefix) + idx.size(1) <= block_size
            assert (idx.size(1) - targets.size(1)) % 8 == 0
            assert (targets != -1).sum(dim=1).tolist() == [2] * 4


# -- from an example to ids

def test_encode_prompts(tok):
    """Whole prompts have the ids of their text; a cut one lacks the end of its input."""
    texts = [("Say it.", ""), ("Find it.", "ACGT" * 30), ("Find it.", "Some prose, CAT and NNACGTACGTA."),
             ("Say what {braces} are.", " spaces \n")]
    examples = [{"instruction": instruction, "input": text} for instruction, text in texts]
    prompts, kept = encode_prompts(tok, examples, 10 ** 6)
    assert kept == [len(text) for _, text in texts]
    assert [ids.tolist() for ids in prompts] == [tok.encode(alpaca_prompt(*pair)) for pair in texts]
    before, after = (tok.encode(part) for part in alpaca_parts("Find it.", True))
    (cut, short), kept = encode_prompts(tok, examples[:2][::-1], len(before) + len(after) + 3)
    assert cut.tolist() == before + tok.encode("ACGT" * 30)[:3] + after
    assert kept == [len(tok.decode(tok.encode("ACGT" * 30)[:3])), 0]
    assert short.tolist() == tok.encode(alpaca_prompt("Say it."))
    assert encode_prompts(tok, examples[1:2], len(before) + len(after) - 1) == ([None], [120])
    assert encode_prompts(tok, [], 10) == ([], [])


def test_the_second_line_of_folded_dna_begins_a_token(tok):
    dna = random_dna(400)
    (ids,), _ = encode_prompts(tok, [{"instruction": "Splice?", "input": dna}], 10 ** 6)
    left, right = tok.encode(dna[:200]), tok.encode(dna[200:])
    assert str(left + tok.encode("\n") + right)[1:-1] in str(ids.tolist())


def test_rows_end_in_end_of_text(tok):
    row = encode_rows(LETTERS[:1], tok, 200, 190)[0]
    assert (row.task, row.instruction) == ("letters", "Which letter?")
    assert tok.decode(row.prompt) == alpaca_prompt("Which letter?", "a")
    assert tok.decode(row.response[:-1]) == "yes" and row.response[-1] == tok.eot


def test_long_inputs_are_cut_never_the_answer(tok, capsys):
    long = [LETTERS[0] | {"input": "ab c, " * 500, "output": "yes, no"},
            LETTERS[0] | {"input": "ACGT" * 2500},
            LETTERS[0] | {"instruction": "Which letter?" * 500, "input": ""},
            LETTERS[0] | {"output": "yes, " * 40}]
    rows = encode_rows(LETTERS[:1] + long, tok, 100, 90)
    for r, row in zip(long[:2], rows[1:3]):
        assert len(row.prompt) == 90        # whatever its answer
        kept = tok.decode(row.prompt).split("### Input:\n")[1].split("\n\n### Response:")[0]
        assert r["input"].startswith(kept) and len(kept) > 20
        assert tok.decode(row.prompt).endswith("### Response:\n")
        assert tok.decode(row.response[:-1]) == r["output"]
    assert len(rows) == 3
    assert "2 of 5 examples do not fit" in capsys.readouterr().out


def test_room_for_an_input(tok, capsys):
    """What is printed is how much of a longer input encode_prompts() keeps."""
    dna = [{"instruction": "Which letter?", "input": random_dna(n, n)} for n in (50, 60, 4000)]
    print_room(tok, dna, 150)
    first, hint = capsys.readouterr().out.splitlines()
    room, n_cut = re.fullmatch(r"a prompt holds about (\d+) bases; (\d) of 3 inputs are longer", first).groups()
    assert int(room) == pytest.approx(encode_prompts(tok, dna, 150)[1][2], rel=0.2) and n_cut == "1"
    assert "larger block_size" in hint
    print_room(tok, dna[:2] + [LETTERS[0]] + [LETTERS[0] | {"input": ""}], 150)
    assert re.fullmatch(r"a prompt holds about \d+ bases; 0 of 2 inputs are longer\n"
                        r"a prompt holds about \d+ characters of text; 0 of 2 inputs are longer\n",
                        capsys.readouterr().out)


# -- batches

def test_epoch_batches():
    lengths = np.random.default_rng(0).integers(10, 400, size=1003)
    rows = [row([i] * n, [0], instruction=str(i % 7)) for i, n in enumerate(lengths)]
    epochs = [epoch_batches(rows, 8, 0.0, (1, e)) for e in range(2)]
    for batches in epochs:
        assert len(batches) == 126
        assert sorted(i for batch in batches for i in batch) == list(range(1003))
        assert sum(len({rows[i].instruction for i in batch}) == 1 for batch in batches) >= 120 - 7
    assert epochs[0] == epoch_batches(rows, 8, 0.0, (1, 0)) != epochs[1]

    # little padding, and batches are not in order of length
    longest = [max(lengths[i] for i in batch) for batch in epochs[0]]
    assert sum(n * len(b) for n, b in zip(longest, epochs[0])) < 1.1 * lengths.sum()
    assert abs(np.corrcoef(longest, range(126))[0, 1]) < 0.3


def test_mixed_batches(monkeypatch):
    """Each has several instructions and rows of similar length, and their loss is that of the same
    rows behind a shared prefix."""
    rng = np.random.default_rng(0)
    rows = [row([1, 2, 3, 4 + i % 7] + [20] * n, [5 + i % 3, 0], instruction=str(i % 7))
            for i, n in enumerate(rng.integers(5, 50, size=200))]
    batches = epoch_batches(rows, 16, 0.0, 1, mix_instructions=True)
    assert sorted(i for batch in batches for i in batch) == list(range(200))
    assert all(len({rows[i].instruction for i in batch}) > 2 for batch in batches)
    found = [[rows[i] for i in batch] for batch in batches]
    assert {collate(batch, 64, mix_instructions=True)[0].size(1) for batch in found} <= {32, 64}
    monkeypatch.setattr(instruct, "ROUND_TO", 1)
    model = GPT(GPTConfig(40, 64, 2, 2, 16))
    for batch in found[:3]:
        mixed, prefixed = (model(*collate(batch, 64, mix_instructions=m))[1] for m in (True, False))
        assert len(collate(batch, 64)[2]) == 3
        torch.testing.assert_close(mixed, prefixed)


@pytest.mark.parametrize("most", [0.0, 1.0])
def test_batches_made_ahead(most):
    """In whatever order fit() asks for them, as after a resume"""
    tok = Tokenizer.train([random_dna(5000)], 400)
    rows = [row(tok.encode(random_dna(40, seed)), [0]) for seed in range(40)]
    cfg = InstructConfig(batch_size=4, gradient_accumulation_steps=2, max_steps=9, undo_merges=most)
    batches = instruct.make_batches(rows, tok, cfg, CPU, 64)
    fresh = [instruct.make_batches(rows, tok, cfg, CPU, 64)(step) for step in range(9)]
    for step in (0, 1, 2, 5, 6, 8):
        for batch, expected in zip(batches(step), fresh[step], strict=True):
            assert all(map(torch.equal, batch, expected))


def test_undo_merges():
    """A split row has the same text. DNA tokens become the two that they were merged from."""
    tok = Tokenizer.train([random_dna(5000), "the theme of the thesis " * 50], 400)
    parts = instruct.dna_parts(tok)
    for left, right, new in tok.merges:
        is_dna = set(tok.decode([new])) <= set("ACGT")
        assert parts[new].tolist() == ([left, right] if is_dna else [-1, -1])
    assert (parts >= 0).all(axis=1).sum() > 50 and (parts[:257] == -1).all()

    rows = [row(tok.encode("the theme: " + random_dna(n, seed=n)), [5, 0]) for n in (300, 301)]
    can_split = [(parts[r.prompt, 0] >= 0).sum() for r in rows]
    shares, splits = [], set()
    for seed in range(50):
        drawn = instruct.undo_merges(rows, np.random.default_rng(seed), parts, 0.4, 1024)
        assert [tok.decode(r.prompt) for r in drawn] == [tok.decode(r.prompt) for r in rows]
        # all rows of a batch are split alike; others are not
        a, b = (len(d.prompt) - len(r.prompt) for d, r in zip(drawn, rows))
        assert abs(a / can_split[0] - b / can_split[1]) <= 1 / min(can_split)
        shares.append(a / can_split[0])
        splits.add(tuple(drawn[0].prompt))
    assert min(shares) < 0.05 and 0.35 < max(shares) < 0.41 and len(splits) > 40
    assert abs(np.mean(shares) - 0.2) < 0.05


def test_undo_merges_of_every_token():
    tok = Tokenizer.train([random_dna(5000)], 400)
    parts, ids = instruct.dna_parts(tok), tok.encode(random_dna(100))
    rng = types.SimpleNamespace(uniform=lambda low, high: high,
                                permutation=np.random.default_rng(0).permutation)
    whole = [part for i in ids for part in (parts[i] if parts[i, 0] >= 0 else [i])]
    for most, block_size, expected in ((0.0, 1024, ids), (1.0, 1024, whole),
                                       # it must fit into the context together with its response
                                       (1.0, len(whole) + 2, whole), (1.0, len(whole) + 1, ids)):
        (drawn,) = instruct.undo_merges([row(ids, [5, 0])], rng, parts, most, block_size)
        assert drawn.prompt.tolist() == list(expected)


@pytest.mark.parametrize("balance,expected", [(0.0, {"a": 800, "b": 200}), (1.0, {"a": 500, "b": 500}),
                                              (0.5, {"a": 667, "b": 333})])
def test_balance(balance, expected):
    rows = [row([i], [0], task="a" if i < 800 else "b") for i in range(1000)]
    drawn = [i for batch in epoch_batches(rows, 10, balance, 1) for i in batch]
    assert Counter(rows[i].task for i in drawn) == expected
    for task, n in expected.items():        # none of them again before all have been seen
        times = Counter(i for i in drawn if rows[i].task == task)
        assert max(times.values()) == math.ceil(n / {"a": 800, "b": 200}[task])


# -- scores

def test_matthews():
    assert matthews([[5, 0], [0, 7]]) == 1 and matthews([[0, 5], [7, 0]]) == -1
    assert matthews([[5, 0], [7, 0]]) == 0      # always the same answer
    tp, fn, fp, tn = 90, 10, 30, 70
    by_hand = (tp * tn - fp * fn) / ((tp + fp) * (tp + fn) * (tn + fp) * (tn + fn)) ** 0.5
    assert matthews([[tn, fp], [fn, tp]]) == pytest.approx(by_hand)
    # three classes, by Gorodkin's formula: (c s - t.p) / sqrt(s^2 - p.p) / sqrt(s^2 - t.t)
    assert matthews([[2, 1, 0], [0, 3, 0], [1, 0, 3]]) == pytest.approx(
        (8 * 10 - (3 * 3 + 3 * 4 + 4 * 3)) / ((100 - 34) ** 0.5 * (100 - 34) ** 0.5))


def test_interval():
    """That of a coin: 1.96 standard errors to each side"""
    low, high = mcc_interval(np.array([[250, 250], [250, 250]]))
    assert low == pytest.approx(-1.96 / 1000 ** 0.5, rel=0.1)
    assert high == pytest.approx(1.96 / 1000 ** 0.5, rel=0.1)


def test_interval_of_few_rows():
    """30 of 30 right: Jeffreys' interval of the accuracy, which is much like ours with two labels, begins
    at 0.92. (An accuracy of p on labels that are equally frequent is an MCC of about 2 p - 1.)"""
    low, high = mcc_interval(np.diag([15, 15]))
    assert low == pytest.approx(2 * 0.92 - 1, abs=0.03) and high == 1
    assert mcc_interval(np.diag([1500, 1500]))[0] > 0.99
    # always the same answer: nothing is known of the MCC, and 0 is what it is called
    low, high = mcc_interval(np.array([[15, 0], [15, 0]]))
    assert low < -0.05 and high > 0.05


class Oracle(GPT):
    """Says "yes" to an odd number of a's in the input and then stops; "no" to an even number, and
    then goes on and on."""

    def __init__(self, tok):
        super().__init__(GPTConfig(len(tok), 200, 1, 1, 4))
        self.tok = tok
        self.answers = {word: tok.encode(word)[0] for word in ("yes", "no")}

    def logits_for(self, input):
        """-> logits (V,) of the first token of the response"""
        logits = torch.zeros(self.config.vocab_size)
        logits[self.answers["yes" if input.count("a") % 2 else "no"]] = 9
        return logits

    def after(self, input, token):
        """-> the token that most likely follows one of the response"""
        return self.tok.eot if input.count("a") % 2 else self.answers["no"]

    def log_likelihoods(self, prompts, choices, P=None):
        self.inputs = [self.tok.decode(p).split("### Input:\n")[1].split("\n")[0] for p in prompts]
        return super().log_likelihoods(prompts, choices, P)

    def hidden(self, idx, position=None, cache=None, last=1, branches=()):
        return idx[:, -last:, None]

    def next_token(self, states):
        """In place of the LM head, from the tokens themselves, the prompt's last one and those of the
        response (B, T, 1), to logits (B, T, V)"""
        logits = torch.zeros(*states.shape[:2], self.config.vocab_size)
        for b, row in enumerate(states[..., 0].tolist()):
            logits[b, 0] = self.logits_for(self.inputs[b])
            for t, token in enumerate(row[1:], start=1):
                logits[b, t, self.after(self.inputs[b], token)] = 9
        return logits

    @property
    def device(self):
        return torch.device("cpu")


def oracle(tok, cls=Oracle):
    """-> an Oracle whose LM head is a method, not a matrix"""
    model = cls(tok)
    del model._modules["lm_head"]
    model.__dict__["lm_head"] = model.next_token
    return model


def test_score(tok):
    examples = [e | {"task": "parity", "choices": ["yes", "no"]} for e in LETTERS[:9]] + \
               [e | {"task": "free"} for e in LETTERS[:4]]
    examples[0] = examples[0] | {"output": "no"}    # the one thing that the oracle gets wrong
    scores = score(oracle(tok), tok, examples, 190, InstructConfig(batch_size=1), CPU)
    assert scores["parity"].pop("mcc_interval") == mcc_interval(np.array([[4, 1], [0, 4]]))
    assert scores["parity"].pop("labels") == ["no", "yes"]
    assert scores["parity"].pop("confusion") == [[4, 1], [0, 4]]
    assert scores["parity"] == pytest.approx(
        {"n": 9, "accuracy": 8 / 9, "mcc": matthews([[4, 1], [0, 4]]), "exact_match": 4 / 9,
         "majority": 5 / 9})
    assert scores["free"] == {
        "n": 4, "accuracy": None, "mcc": None, "mcc_interval": None, "labels": [], "confusion": [],
        "exact_match": 0.5, "majority": 0.5}
    result = with_means(scores)
    assert result["mean_accuracy"] == pytest.approx(8 / 9) and "mean_kmer_mcc" not in result


def test_judge_by_hand():
    scores = judge(["a", "a", "b", "c", "c"], ["a", "b", "b", "c", "a"], ["a", "b", "c"])
    confusion = [[1, 1, 0], [0, 1, 0], [1, 0, 1]]
    assert scores == {"accuracy": 0.6, "mcc": matthews(confusion), "labels": ["a", "b", "c"],
                      "mcc_interval": mcc_interval(np.array(confusion)), "confusion": confusion}
    assert judge([], [], []) == {"accuracy": None, "mcc": None, "mcc_interval": None, "labels": [],
                                 "confusion": []}


def test_table_shows_what_there_is(tmp_path):
    scores = {"parity": {"n": 1234, "accuracy": 8 / 9, "mcc": 0.5, "mcc_interval": [0.4, 0.6],
                         "exact_match": None, "majority": 0.5, "tuned": False}}
    assert table(with_means(scores)).splitlines() == [
        "task          n   acc.    MCC  95% interval  major.",
        "parity *  1,234  0.889  0.500   0.400 0.600   0.500",
        "mean             0.889  0.500                      ",
        "* not tuned on"]
    (tmp_path / "scores").mkdir()
    for name, mcc in (("kmer", 0.25), ("mine", 0.125)):
        (tmp_path / f"scores/{name}.json").write_text(json.dumps(
            {"tasks": {"parity": {"mcc": mcc}, "another": {"mcc": 0}}}))
    add_baselines(scores, [str(tmp_path / "parity.dev.json")])
    assert scores["parity"]["kmer_mcc"] == 0.25 and "another" not in scores
    assert table(with_means(scores)).splitlines()[0].endswith("  6-mers  mine_mcc")
    assert with_means(scores)["mean_mine_mcc"] == 0.125


def test_an_example_without_choices_is_not_a_right_answer(tok):
    """In a task whose other examples have choices it counts for exact_match alone."""
    choices = {"choices": ["yes", "no"]}
    examples = [LETTERS[0] | choices, LETTERS[2] | choices | {"output": "no"}, LETTERS[4] | {"output": "maybe"}]
    scores = score(oracle(tok), tok, examples, 190, InstructConfig(), CPU)["letters"]
    assert (scores["n"], scores["accuracy"], scores["exact_match"]) == (3, 0.5, 1 / 3)


def test_a_choice_that_begins_another(tok):
    """<|endoftext|> is part of a choice, so the shorter one does not win by being shorter."""
    class Writer(Oracle):       # "yes, no" and then stops
        def after(self, input, token):
            ids = tok.encode("yes, no") + [tok.eot]
            return dict(zip(ids, ids[1:])).get(token, tok.eot)

    model = oracle(tok, Writer)
    assert tok.encode("yes, no")[0] == model.answers["yes"]
    example = LETTERS[0] | {"choices": ["yes", "yes, no", "no"]}
    for output, accuracy in (("yes", 0), ("yes, no", 1)):
        scores = score(model, tok, [example | {"output": output}], 190, InstructConfig(), CPU)
        assert scores["letters"]["accuracy"] == scores["letters"]["exact_match"] == accuracy


def test_both_strands(tok):
    """The mean of what the model says of the two, where the answer is the same on both"""
    class CountsA(Oracle):      # the more A's, the likelier "yes": even odds at seven
        def logits_for(self, input):
            logits = torch.zeros(self.config.vocab_size)
            logits[self.answers["yes"]], logits[self.answers["no"]] = 2 + input.count("A"), 9
            return logits

    def accuracy(sequence, either_strand):
        example = LETTERS[0] | {"input": sequence, "choices": ["yes", "no"], "either_strand": either_strand}
        return score(oracle(tok, CountsA), tok, [example], 190, InstructConfig(), CPU)["letters"]["accuracy"]

    forward = "A" * 8 + "CTCTCT"        # by itself "yes"; its reverse complement, with three A's, "no"
    turned = reverse_complement(forward)
    assert other_strand([{"input": forward, "either_strand": True}, {"input": "A"}]) == \
        [{"input": turned, "either_strand": True}]
    assert (accuracy(forward, False), accuracy(turned, False)) == (1, 0)
    assert accuracy(forward, True) == accuracy(turned, True) == 0


def test_label_probabilities(toy):
    """Rows of any length in any batch have the probabilities that they have alone."""
    model, tok, _ = load_for_prompts(f"{toy}/out")
    rng = np.random.default_rng(0)
    examples = [{"instruction": "Is it?", "input": random_dna(int(n)), "choices": ["yes", "no", "perhaps"]}
                for n in rng.integers(4, 90, size=150)]
    answers = label_probabilities(model.eval(), tok, examples, 240, CPU, "", batch_size=32)
    choices = [tok.encode(choice) + [tok.eot] for choice in examples[0]["choices"]]
    for i in (0, 77, 149):
        (ids,), _ = encode_prompts(tok, [examples[i]], 240)
        nats, is_greedy = model.log_likelihoods([ids.tolist()], choices)
        assert answers[i].log_p == pytest.approx(nats.log_softmax(dim=1)[0].tolist(), abs=1e-5)
        assert answers[i].is_greedy.tolist() == is_greedy[0].tolist()
    assert np.exp([answer.log_p for answer in answers]).sum(axis=1) == pytest.approx([1] * 150)


def test_neighbours_share_a_batch(toy, monkeypatch):
    """Mutants of a sequence, whose prompts differ by a few tokens in length, stay in their order, so
    that the prefix of a batch is long. Rows of other lengths or choices are in other batches."""
    model, tok, _ = load_for_prompts(f"{toy}/out")
    batches, real = [], GPT.log_likelihoods
    monkeypatch.setattr(GPT, "log_likelihoods",
                        lambda self, prompts, choices, P:
                        batches.append(prompts) or real(self, prompts, choices, P))
    dna = random_dna(60)
    mutants = [{"instruction": "Is it?", "input": dna[:i] + base + dna[i + 1:], "choices": ["yes", "no"]}
               for i in range(60) for base in "ACGT"]
    label_probabilities(model, tok, mutants, 240, CPU, "")
    prompts, _ = encode_prompts(tok, mutants, 240)
    expected = sorted(prompts, key=lambda ids: len(ids) // 4)
    assert [ids for batch in batches for ids in batch] == [ids.tolist() for ids in expected]
    assert len({len(ids) for batch in batches for ids in batch}) > 2 and len(batches) <= 7


def test_both_strands_are_tuned_on():
    """Where the answer is the same, and never the other strand of a held-out example"""
    examples = [{"input": random_dna(20, seed), "either_strand": seed % 2 == 0} for seed in range(10)]
    val, train = instruct.hold_out(examples, InstructConfig(val_fraction=0.3))
    assert len(val) == 3 and all(e in examples for e in val)
    either = [e for e in examples if e["either_strand"] and e not in val]
    assert train[:7] == [e for e in train if e in examples] and len(train) == 7 + len(either)
    assert {e["input"] for e in train[7:]} == {reverse_complement(e["input"]) for e in either}


@pytest.mark.parametrize("length", [400, 600])
def test_cuts_say_nothing_of_the_answer(tok, length):
    """Prompts that do not fit are cut alike, however long the choice that is right; and scoring has
    room for every choice."""
    choices = ["no", "a much longer answer than that"]
    examples = [{"task": "t", "instruction": "Which?", "input": "AC" * length, "output": choice,
                 "choices": choices} for choice in choices]
    model = GPT(GPTConfig(len(tok), 128, 1, 1, 8))
    max_len = max_prompt_len(tok, choices, 128)
    short, long = encode_rows(examples, tok, 128, max_len)
    assert short.prompt.tolist() == long.prompt.tolist() and len(short.prompt) == max_len
    assert len(long.prompt) + len(long.response) == 128
    assert score(model, tok, examples, max_len, InstructConfig(), CPU)["t"]["n"] == 2


# -- the whole script

def tune(toy, out, *args):
    instruct.main(merge(*[a for a in SMALL if a.split("=")[0] in
                          ("--batch_size", "--warmup_steps", "--device", "--dtype", "--compile")],
                        f"--init_from={toy}/out", f"--out_dir={out}", "--log_interval=1", *args))


@pytest.fixture
def plain(tmp_path):
    """General instructions, without task or choices, one per line -> (to tune on, to score)"""
    for name, numbers in (("plain", range(60)), ("asked", range(60, 80))):
        (tmp_path / f"{name}.jsonl").write_text("".join(
            json.dumps({"instruction": f"Say {i}.", "output": f"It is {i}."}) + "\n" for i in numbers))
    return f"--tasks={tmp_path}/plain.jsonl", f"--eval_tasks={tmp_path}/asked.jsonl"


def test_plain_instructions_train(toy, tmp_path, plain):
    tune(toy, tmp_path / "out", *plain, "--max_steps=6", "--eval_interval=3")
    scores = json.loads((tmp_path / "out/scores.json").read_text())
    assert scores["tasks"]["asked"]["n"] == 20 and scores["tasks"]["asked"]["accuracy"] is None
    assert scores["mean_accuracy"] is None
    losses = [line["loss"] for line in read_log(tmp_path / "out") if "loss" in line]
    assert len(losses) == 6 and losses[-1] < losses[0]
    evaluations = [line for line in read_log(tmp_path / "out") if "val_loss" in line]
    assert [set(line) for line in evaluations] == [{"step", "val_loss"}] * 2
    assert {"config.json", "last.pt", "best.pt", "log.jsonl", "tokenizer.json",
            "scores.json"} == set(os.listdir(tmp_path / "out"))


def test_resumed_equals_uninterrupted(toy, tmp_path, plain):
    args = [*plain, "--eval_interval=4", "--dropout=0.1", "--max_steps=8"]
    tune(toy, tmp_path / "whole", *args)
    with pytest.MonkeyPatch.context() as patch:
        real = instruct.fit
        patch.setattr(instruct, "fit", lambda model, cfg, machine, batches, *rest: real(
            model, cfg, machine, lambda s: batches(s) if s < 6 else 1 / 0, *rest))
        with pytest.raises(ZeroDivisionError):
            tune(toy, tmp_path / "parts", *args)
    with pytest.raises(ValueError, match="began with another data"):
        (tmp_path / "other.jsonl").write_text("\n".join(
            json.dumps({"instruction": f"Sing {i}.", "output": "La."}) for i in range(60)))
        tune(toy, tmp_path / "parts", *args, "--resume", f"--tasks={tmp_path}/other.jsonl")
    tune(toy, tmp_path / "parts", *args, "--resume")
    assert read_log(tmp_path / "parts") == read_log(tmp_path / "whole")
    assert same(weights(tmp_path / "parts"), weights(tmp_path / "whole"))


def test_left_out_tasks_and_baselines(toy, tmp_path, capsys):
    tune(toy, tmp_path / "out", f"--tasks={toy}/data/tasks/*.train.json", "--leave_out=tf,spl*",
         f"--eval_tasks={toy}/data/tasks/*.test.json", "--balance=1", "--max_steps=4")
    result = json.loads((tmp_path / "out/scores.json").read_text())
    assert {t: s["tuned"] for t, s in result["tasks"].items()} == {
        "core_promoter": True, "promoter": True, "splice": False, "tf": False}
    for s in result["tasks"].values():
        assert s["n"] in (24, 36) and -1 <= s["zero_shot_mcc"] <= 1
        assert s["mcc_interval"][0] <= s["mcc"] <= s["mcc_interval"][1]
    printed = capsys.readouterr().out
    assert "rows of 2 tasks" in printed and "tf *" in printed and "before" in printed
    state = load_checkpoint(str(tmp_path / "out/best.pt"))[1]
    assert set(state["questions"]) == {"core_promoter", "promoter"}
    assert state["questions"]["promoter"]["choices"] == ["Non-promoter", "promoter"]
    assert state["questions"]["promoter"]["instruction"].startswith("Determine promoter detection")


def test_what_is_scored(toy, tmp_path, capsys):
    """Without eval_tasks the test rows beside the training rows, or the dev rows where there are none"""
    for name in ("tf.train.json", "tf.test.json", "splice.train.json"):
        shutil.copy(f"{toy}/data/tasks/{name}", tmp_path / name)
    shutil.copy(tmp_path / "splice.train.json", tmp_path / "tf.dev.json")
    shutil.copy(f"{toy}/data/tasks/splice.test.json", tmp_path / "splice.dev.json")
    tune(toy, tmp_path / "out", f"--tasks={tmp_path}/*.train.json", "--epochs=0")
    assert list(json.loads((tmp_path / "out/scores.json").read_text())["tasks"]) == ["splice", "tf"]

    # a model of one task is asked without naming it; nothing to score leaves no empty table
    (tmp_path / "tf.test.json").unlink()
    (tmp_path / "tf.dev.json").unlink()
    capsys.readouterr()
    tune(toy, tmp_path / "tuned", f"--tasks={tmp_path}/tf.train.json", "--max_steps=4")
    printed = capsys.readouterr().out
    assert "mean" not in printed and not (tmp_path / "tuned/scores.json").exists()
    assert re.search(r"\nstep 2 of 4: about \d\d:\d\d to go\n", printed)
    assert printed.endswith(f"next: python sample.py --out_dir={tmp_path}/tuned --predict=new.csv\n")
    with pytest.raises(ValueError, match="nothing to score: give eval_tasks"):
        tune(toy, tmp_path / "new", f"--tasks={tmp_path}/tf.train.json", "--epochs=0")


def test_a_small_table_gets_min_steps():
    rows = [row([1, 2], [3, 0], "a") for _ in range(100)]
    model = GPT(GPTConfig(vocab_size=61, n_layer=1, n_head=1, n_embd=8))
    for epochs, steps in ((2.0, 50), (8.0, 80)):
        cfg = InstructConfig(batch_size=10, gradient_accumulation_steps=1, epochs=epochs, min_steps=50)
        assert instruct.plan(rows, cfg, CPU, model).max_steps == steps


@pytest.mark.parametrize("compiles, max_steps, then", [("auto", 10, "no"), ("auto", 10 ** 9, "yes"),
                                                       ("yes", 10, "yes"), ("no", 10 ** 9, "no")])
def test_a_long_run_is_compiled(monkeypatch, compiles, max_steps, then):
    monkeypatch.setattr(shutil, "which", lambda name: f"/usr/bin/{name}")
    rows = [Row(np.arange(20), np.arange(3), "a", "Is it?")] * 9
    model = GPT(GPTConfig(vocab_size=61, n_layer=1, n_head=1, n_embd=8))
    cfg = InstructConfig(max_steps=max_steps, compile=compiles)
    assert instruct.plan(rows, cfg, CPU, model).compile == then


def test_only_scoring(toy, tmp_path, capsys):
    """It writes scores.json, the same each time, and nothing else."""
    args = ["--epochs=0", f"--eval_tasks={toy}/data/tasks/splice.test.json"]
    before = listing(f"{toy}/out")
    written = []
    for _ in range(2):
        tune(toy, tmp_path / "new/scores", *args)
        written.append(listing(tmp_path / "new"))
    assert written[0] == written[1] and list(written[0]) == [f"{tmp_path}/new/scores/scores.json"]
    assert json.loads((tmp_path / "new/scores/scores.json").read_text())["tasks"]["splice"]["n"] == 36
    out = capsys.readouterr().out
    assert out.splitlines()[-1].startswith(f"wrote {tmp_path}/new/scores/scores.json; next: python sample.py")
    assert f"--out_dir={toy}/out" in out.splitlines()[-1]

    # a model may have its own scores in its folder, but not those of another
    (tmp_path / "other").mkdir()
    (tmp_path / "other/best.pt").write_bytes(b"another model")
    with pytest.raises(ValueError, match="out_dir=.*other holds another model than init_from"):
        tune(toy, tmp_path / "other", *args)
    shutil.copytree(f"{toy}/out", tmp_path / "own")
    tune(toy, tmp_path / "own", *args, f"--init_from={tmp_path}/own")
    assert (tmp_path / "own/scores.json").exists() and listing(f"{toy}/out") == before


def test_the_table_is_printed_before_it_is_written(toy, tmp_path, monkeypatch, capsys):
    """A disk that is full after hours of scoring must not take the figures with it."""
    monkeypatch.setattr(instruct.config, "write_json", lambda path, value: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        tune(toy, tmp_path / "out", "--epochs=0", f"--eval_tasks={toy}/data/tasks/splice.test.json")
    assert "splice  36" in capsys.readouterr().out


def test_two_processes_score_as_one(toy, tmp_path):
    """Each answers every other example; the figures are of all of them."""
    args = [f"--init_from={toy}/out", "--epochs=0", f"--eval_tasks={toy}/data/tasks/*.test.json",
            "--device=cpu", "--dtype=float32"]
    instruct.main([*args, f"--out_dir={tmp_path}/one"])
    done = subprocess.run([sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2",
                           instruct.__file__, *args, f"--out_dir={tmp_path}/two"],
                          env=os.environ | {"OMP_NUM_THREADS": "1"}, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    one, two = (json.loads((tmp_path / name / "scores.json").read_text())["tasks"] for name in ("one", "two"))
    assert one == two and one["splice"]["n"] == 36


def test_tuned_models_know_prompts_of_one_form(toy, tmp_path, plain, monkeypatch):
    """Whoever changes the prompt is told by a model that was tuned before."""
    tuned = tmp_path / "tuned"
    tune(toy, tuned, *plain, "--max_steps=2", "--eval_interval=1")
    state = load_for_prompts(tuned)[2]
    assert state["prompt"].count("GATTACA") < 5 and "### Input:" in state["prompt"]     # folded
    uses = [lambda: sample.main([f"--out_dir={tuned}", "--instruction=Say it.", "--max_new_tokens=1"]),
            lambda: tune(toy, tmp_path / "scored", *plain, f"--init_from={tuned}", "--epochs=0"),
            lambda: tune(toy, tmp_path / "more", *plain, f"--init_from={tuned}", "--max_steps=1"),
            lambda: tune(toy, tuned, *plain, "--max_steps=4", "--eval_interval=1", "--resume")]
    for use in uses[:2]:
        use()

    # another heading, or another line break in DNA
    for name, value in (("alpaca_parts", lambda instruction, has_input: (f"Q: {instruction}\n", "A: ")),
                        ("fold", lambda text: text)):
        with monkeypatch.context() as patch:
            patch.setattr(tasks, name, value)
            for use in uses:
                with pytest.raises(ValueError, match="tuned: this code writes prompts in another form"):
                    use()
            tune(toy, tmp_path / name, *plain, "--epochs=0")        # a pretrained model knows none

    # a model of the time before
    del state["prompt"]
    torch.save(state, tuned / "best.pt")
    for use in uses[:3]:
        with pytest.raises(ValueError, match="use it with commit 9eba337, or tune it again"):
            use()


def test_refusals(toy, tmp_path, plain):
    tasks, asked = plain
    one = tmp_path / "one.jsonl"
    one.write_text(json.dumps({"instruction": "Say it.", "output": "It."}))
    for args, message in [(["--tasks=none/*.json", asked], "none/.*: no such file: run prepare.py"),
                          ([tasks, asked, f"--init_from={tmp_path}"], "no such checkpoint"),
                          ([tasks, asked, "--device=cuda:77"], "no such device"),
                          ([tasks, asked, "--leave_out=plain"], "nothing is left to tune on"),
                          ([tasks, asked, "--leave_out=tf_*"], r"leave_out=tf_\*: no task of this name"),
                          ([tasks, tasks.replace("tasks", "eval_tasks")], "nothing is left to tune on"),
                          ([f"--tasks={one}", asked], "1 rows are too few to tune on"),
                          ([tasks, asked, "--out_dir=/proc/x", "--epochs=0"], "/proc/x/scores.json: cannot be written"),
                          ([tasks, asked, f"--out_dir={toy}/./out"], "out_dir=.* is init_from")]:
        before = listing(f"{toy}/out")
        with pytest.raises((ValueError, OSError), match=message):
            tune(toy, tmp_path / "out", *args)
        assert listing(f"{toy}/out") == before
    assert not os.path.exists(tmp_path / "out")
