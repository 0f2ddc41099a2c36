"""Baselines and benchmarks: 6-mers, few-shot examples, classifiers, the time of a step."""
import json
import os
import re
import shutil
from collections import Counter

import numpy as np
import pytest
import torch
from torch.nn import functional as F

import config
import instruct
import train
from bench import bags, classify, few_shot, kmers, step, vs_padding, vs_transformers
from bench.classify import Classifier
from bpe import Tokenizer
from config.machine import Machine
from config.read import reverse_complement
from conftest import SMALL, listing, merge
from metrics import matthews
from model import GPT, GPTConfig, load_checkpoint
from tasks import Row, encode_prompts, encode_rows, fold, read_tasks
from train import TrainConfig

CPU = Machine(torch.device("cpu"), torch.float32)
RUN = [arg for arg in SMALL if arg.split("=")[0] in
       ("--batch_size", "--warmup_steps", "--device", "--dtype", "--compile")]
DNA = [{"task": "t", "instruction": "Which?", "input": s, "output": o, "choices": ["yes", "no"]}
       for s, o in [("AAAAAAAAAAAA", "yes"), ("ACACACACACAC", "no"), ("GATTACAGATTACA", "yes"),
                    ("GGGGGGGGGGGG", "no"), ("TTTTTTTTTTTT", "yes")]]


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    """What is computed here is too small to be shared among cores."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def random_dna(rng, length, letters="ACGT"):
    return "".join(rng.choice(list(letters), size=length))


def load(path):
    with open(path, encoding="utf-8") as f:
        return json.load(f)


def write(path, records):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(records))


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
    records = [with_motif(rng, "GATTACAT" if i % 2 else "") for i in range(600)]
    scores = kmers.score_task(records[:500], records[500:])
    assert scores["n"] == 100 and scores["accuracy"] > 0.95 and scores["majority"] == 0.5
    assert scores["mcc_interval"][0] <= scores["mcc"] <= scores["mcc_interval"][1]


def test_bags_of_tokens(toy, tasks, capsys):
    """Counts of the ids of a prompt's DNA; the 6-mers are those of the baseline."""
    tok = Tokenizer.load(f"{toy}/data/tokenizer.json")
    dna = "ACGTTGCAACGGTTAACGGTACGTTGCA"
    row = bags.token_roots([dna, "ACGTACGTACGTACGT"], tok).to_dense()[0]
    assert row.square().round().int().tolist() == np.bincount(tok.encode(fold(dna)), minlength=len(tok)).tolist()
    bags.main([str(tasks), f"{toy}/data/tokenizer.json", "--pattern=splice"])
    head, task, mean = capsys.readouterr().out.splitlines()
    assert head.split() == ["MCC", "6-mers", f"{len(tok)}", "ids"]
    records = [read_tasks([f"{tasks}/splice.{split}.json"]) for split in ("train", "test")]
    assert task.split()[1] == f"{kmers.score_task(*records)['mcc']:.3f}" == mean.split()[1]
    with pytest.raises(ValueError, match="give the tasks folder"):
        bags.main([str(tasks), f"{toy}/data/tokenizer.json", "--pattern=none"])


def test_kmers_are_cached(tasks, monkeypatch, capsys):
    fitted, real = [], kmers.score_task

    def score_task(train, test):
        fitted.append(train[0]["task"])
        return real(train, test)

    monkeypatch.setattr(kmers, "score_task", score_task)
    kmers.main([str(tasks), "--pattern=*promoter"])
    assert fitted == ["core_promoter", "promoter"]
    first = load(tasks / "scores/kmer.json")
    assert first["tasks"]["core_promoter"]["mcc"] > 0.5 and first["mean_mcc"] > 0.5
    capsys.readouterr()

    # what has not changed is kept, also when only the instruction is another one
    records = load(tasks / "promoter.train.json")
    write(tasks / "promoter.train.json", [r | {"instruction": "Say it."} for r in records])
    write(tasks / "core_promoter.train.json", load(tasks / "core_promoter.train.json")[1:])
    del fitted[:]
    kmers.main([str(tasks)])
    assert fitted == ["core_promoter", "splice", "tf"]
    again = load(tasks / "scores/kmer.json")
    assert again["tasks"]["promoter"] == first["tasks"]["promoter"]
    assert list(again["tasks"]) == ["core_promoter", "promoter", "splice", "tf"]
    printed = capsys.readouterr().out
    assert "splice" in printed and printed.endswith(f"wrote {tasks}/scores/kmer.json\n")

    # instruct.py finds it
    scores = {"tf": {"mcc": 0.0}}
    instruct.add_baselines(scores, [str(tasks / "tf.test.json")])
    assert scores["tf"]["kmer_mcc"] == again["tasks"]["tf"]["mcc"]


def test_stopped_6mers_lose_nothing(tasks, monkeypatch):
    real = kmers.score_task
    monkeypatch.setattr(kmers, "score_task", lambda train, test: real(train, test)
                        if train[0]["task"] < "splice" else 1 / 0)
    with pytest.raises(ZeroDivisionError):
        kmers.main([str(tasks)])
    assert set(load(tasks / "scores/kmer.json")["tasks"]) == {"core_promoter", "promoter"}


def test_which_rows_6mers_score(tmp_path):
    rng = np.random.default_rng(0)
    records = [with_motif(rng, "GATTACAT" if i % 2 else "") for i in range(60)]
    for name, part in (("train", records[:40]), ("dev", records[40:50]), ("test", records[40:])):
        write(tmp_path / f"motif.{name}.json", part)
    path = tmp_path / "scores/kmer.json"
    for args, n in (([], 10), (["--split=test"], 20), (["--split=dev"], 10)):
        kmers.main([str(tmp_path), *args])
        assert load(path)["tasks"]["motif"]["n"] == n

    # a task that is no longer one of DNA loses its score
    write(tmp_path / "motif.train.json", [r | {"input": "in words"} for r in records[:40]])
    with pytest.raises(ValueError, match="no task with 20 training rows"):
        kmers.main([str(tmp_path)])
    path.write_text("half of i")
    with pytest.raises(ValueError, match="kmer.json: damaged: delete it"):
        kmers.main([str(tmp_path)])
    with pytest.raises(ValueError, match=r"no none\*.train.json with a dev or test file"):
        kmers.main([str(tmp_path), "--pattern=none*"])


# -- few-shot examples

class Args:
    def __init__(self, shots, nearest=True, seed=1):
        self.shots, self.nearest, self.seed = shots, nearest, seed


def test_most_similar_equals_brute_force():
    rng = np.random.default_rng(0)
    known, queries = ([random_dna(rng, rng.integers(20, 60)) for _ in range(n)] for n in (90, 30))
    x, q = (F.normalize(kmers.kmer_roots(part).to_dense(), dim=1) for part in (known, queries))
    cosine = q @ x.T
    for row, found in zip(cosine, few_shot.most_similar(queries, known, 5)):
        assert torch.allclose(row[found], row.topk(5).values, atol=1e-6)


def test_nearest_examples():
    queries = [DNA[0] | {"input": s} for s in ("CACACACACACG", "GATTACAGATTACT")]
    found = few_shot.find_examples(queries, DNA, Args(2))
    assert [examples[0] for examples in found] == [("ACACACACACAC", "no"),
                                                   ("GATTACAGATTACA", "yes")]
    assert all(len(examples) == 2 for examples in found)
    assert few_shot.with_examples(queries[1], found[1][:1])["input"] == \
        "GATTACAGATTACA: yes\nGATTACAGATTACT"
    both = few_shot.with_examples(queries[1] | {"either_strand": True}, found[1])
    assert both["input"].endswith("GATTACAGATTACA: yes\nGATTACAGATTACT")     # the nearest is last
    assert "either_strand" not in both and both["output"] == "yes"
    assert few_shot.with_examples(queries[1], []) == queries[1]


@pytest.mark.parametrize("nearest", [True, False])
def test_no_record_is_its_own_example(nearest):
    for r, examples in zip(DNA, few_shot.find_examples(DNA, DNA + DNA, Args(9, nearest))):
        sequences = [sequence for sequence, _ in examples]
        assert r["input"] not in sequences and len(set(sequences)) == len(sequences)
        assert reverse_complement(r["input"]) not in sequences
        # AAAAAAAAAAAA and TTTTTTTTTTTT are each other's reverse complement
        assert len(sequences) == (3 if r["input"][:2] in ("AA", "TT") else 4)
    twice = [few_shot.find_examples(DNA, DNA, Args(2, nearest)) for _ in range(2)]
    assert twice[0] == twice[1] != few_shot.find_examples(DNA, DNA, Args(1, nearest))


def test_examples_that_do_not_fit_are_dropped():
    tok = Tokenizer.train(["Which?", "yes", "no"] * 9, 300)
    examples = [("ACGT" * 5, "yes"), ("GGGG" * 5, "no"), ("TTTT" * 5, "no")]

    def length(n):
        r = few_shot.with_examples(DNA[0], examples[:n])
        return len(encode_prompts(tok, [(r["instruction"], r["input"])], 10 ** 6)[0][0])

    for n in range(4):
        kept, = few_shot.drop_examples(DNA[:1], [examples], tok, length(n))
        assert kept == examples[:n]
    assert few_shot.drop_examples(DNA[:1], [examples], tok, 5) == [[]]


def test_votes_by_hand():
    records = [DNA[0], DNA[1], DNA[2]]      # yes, no, yes
    examples = [[("A", "no"), ("C", "yes"), ("G", "yes")],      # yes
                [("A", "no"), ("C", "yes")],                    # a tie: the nearest, no
                [("A", "no")]]                                  # no
    scores = few_shot.score_votes(records, examples)
    assert (scores["n"], scores["accuracy"], scores["majority"]) == (3, 2 / 3, 2 / 3)
    assert scores["mcc"] == pytest.approx(matthews([[1, 0], [1, 1]]))


def test_few_shot_folder(toy, tasks, tmp_path, capsys):
    plain = [{"instruction": "Say hello.", "input": "", "output": "Hello."}]
    write(tasks / "chat.train.json", plain)
    write(tasks / "scores/kmer.json", {"tasks": {"tf": {"mcc": 0.5}}})
    out = tmp_path / "nearest"
    before = listing(tasks)
    few_shot.main([str(tasks), str(out), "--shots=2", "--nearest", f"--init_from={toy}/out"])
    after = listing(tasks)
    assert {os.path.relpath(path, tasks) for path in after.keys() - before.keys()} == {
        "scores/nearest.json"}
    assert all(after[path] == before[path] for path in before)

    # the same rows under the same names, with examples from the training rows
    names = sorted(name for name in os.listdir(tasks) if name.endswith(".json"))
    assert sorted(os.listdir(out)) == sorted([*names, "scores"])
    assert [r["output"] for r in read_tasks([str(out / "chat.train.json")])] == ["Hello."]
    old, new = (read_tasks([str(folder / "tf.test.json")]) for folder in (tasks, out))
    known = {(r["input"], r["output"]) for r in read_tasks([str(tasks / "tf.train.json")])}
    for a, b in zip(old, new, strict=True):
        *examples, sequence = b["input"].split("\n")
        assert sequence == a["input"] and a["output"] == b["output"]
        assert len(examples) <= 2 and {tuple(line.split(": ")) for line in examples} <= known
    assert any("\n" in r["input"] for r in new)

    # the baselines, and a printed table
    votes = load(out / "scores/nearest.json")
    assert votes == load(tasks / "scores/nearest.json") and votes["shots"] == 2
    assert votes["tasks"]["tf"]["n"] == len(old) and set(votes["tasks"]) >= {"tf", "splice"}
    assert load(out / "scores/kmer.json")["tasks"]["tf"]["mcc"] == 0.5
    printed = capsys.readouterr().out
    assert re.search(r"[\d,]+ examples of [\d,]+ fit into \d+ tokens", printed)
    assert "the vote of the nearest 2" in printed and printed.endswith(f"wrote {out}\n")

    # fewer training rows, with examples among all; as many scored rows
    few_shot.main([str(tasks), f"{tmp_path}/few", "--shots=1", "--rows=5"])
    few, all_rows = (read_tasks([f"{folder}/tf.train.json"]) for folder in (tmp_path / "few", tasks))
    sequences = [r["input"] for r in all_rows]
    assert len(few) == 5 < len(all_rows)
    assert all(r["input"].split("\n")[-1] in sequences for r in few)
    assert len(read_tasks([f"{tmp_path}/few/tf.test.json"])) == len(old)


def test_reworded(tasks, tmp_path):
    few_shot.main([str(tasks), str(tmp_path / "out"), "--reworded"])
    old, new = (read_tasks([f"{folder}/splice.test.json"]) for folder in (tasks, tmp_path / "out"))
    for a, b in zip(old, new, strict=True):
        assert b["instruction"] != a["instruction"] and b == a | {"instruction": b["instruction"]}
        what = b["instruction"].removeprefix("I need ").split(" for a piece")[0]
        assert f"Determine {what} of following" in a["instruction"]
        assert ", ".join(a["choices"]) in b["instruction"]
    for name in ("splice.train.json", "tf.train.json"):
        assert load(tasks / name) == load(tmp_path / "out" / name)
    assert not os.path.exists(tmp_path / "out/scores")


def test_few_shot_refusals(tasks, tmp_path):
    before = listing(tmp_path)
    out = f"{tmp_path}/out"
    for folders, args, message in [((tasks, out), [], "nothing to do: give --shots=3"),
                                   ((tasks, out), ["--nearest", "--reworded"], "nothing to do"),
                                   ((tasks, f"{tasks}/"), ["--shots=1"], "would be overwritten"),
                                   ((tmp_path, out), ["--shots=1"], "no .json files")]:
        with pytest.raises(ValueError, match=message):
            few_shot.main([*map(str, folders), *args])
    assert listing(tmp_path) == before
    write(tmp_path / "chat/chat.test.json", [{"instruction": "Say hello.", "output": "Hello."}])
    for args, message in [(["--shots=1"], "no training rows with choices and DNA"),
                          (["--reworded"], "no scored rows with an instruction of prepare.py")]:
        with pytest.raises(ValueError, match=message):
            few_shot.main([f"{tmp_path}/chat", out, *args])
    assert not os.path.exists(out)


# -- classifiers

def test_classifier_by_hand():
    torch.manual_seed(0)
    model = Classifier(GPTConfig(9, 10, 2, 2, 8), 3)
    rows = [Row(np.array(prompt), np.array([label]), "", "")
            for prompt, label in (([0, 5, 6, 0], 2), ([0, 7, 0], 1))]
    idx, targets = classify.collate(rows)
    assert idx.tolist() == [[0, 5, 6, 0], [0, 7, 0, 0]]
    assert targets.tolist() == [[-1, -1, -1, 2], [-1, -1, 1, -1]]

    # each row as it is alone
    logits, loss = model(idx, targets)
    assert logits.shape == (2, 3)
    alone = [model(*classify.collate([row]))[0][0] for row in rows]
    torch.testing.assert_close(logits, torch.stack(alone))
    by_hand = -(logits[0].log_softmax(0)[2] + logits[1].log_softmax(0)[1]) / 2
    assert loss.item() == pytest.approx(by_hand.item())

    # in the order of the rows, whatever their length
    cfg = classify.ClassifyConfig(batch_size=1)
    found = classify.probabilities(model, rows * 3, cfg, CPU)
    expected = torch.stack(alone * 3).softmax(dim=1).detach().numpy()
    np.testing.assert_allclose(found, expected, atol=1e-6)


def test_classification_rows():
    tok = Tokenizer.train([], 257)
    rows = classify.encode(DNA[:2], ["no", "yes"], tok, 10)
    assert [row.response.tolist() for row in rows] == [[1], [0]]
    a, c = tok.encode("AC")
    assert rows[0].prompt.tolist() == [tok.eot, *[a] * 8, tok.eot]      # cut at the end
    assert rows[1].prompt.tolist() == [tok.eot, *[a, c] * 4, tok.eot]


def run_classify(toy, tasks, out, *args):
    classify.main(merge(*RUN, f"--init_from={toy}/out", f"--out_dir={out}", "--epochs=4",
                        f"--tasks={tasks}/[cp]*.train.json", f"--eval_tasks={tasks}/*.test.json",
                        "--learning_rate=1e-2", "--optimizer=muon", "--log_interval=1",
                        "--gradient_accumulation_steps=1", *args))


def test_classification_tuning(toy, tasks, tmp_path):
    """A model per task; the core promoters of the toy world have their TATA box at one position."""
    out, path = tmp_path / "out", tasks / "scores/classify.json"
    before = listing(f"{toy}/out")
    run_classify(toy, tasks, out)
    result = load(path)
    assert set(result["tasks"]) == {"core_promoter", "promoter"}
    assert result["tasks"]["core_promoter"]["accuracy"] > 0.7
    files = ["config.json", "log.jsonl", "scores.json", "tokenizer.json"]
    assert sorted(os.listdir(out)) == ["core_promoter", "promoter"]
    assert sorted(os.listdir(out / "promoter")) == files
    assert listing(f"{toy}/out") == before

    # stopped in its second task, it continues there
    log = (out / "core_promoter/log.jsonl").read_bytes()
    os.remove(out / "promoter/scores.json")
    (out / "promoter/last.pt").write_text("half of it")
    run_classify(toy, tasks, out, "--resume")
    assert load(path) == result
    assert (out / "core_promoter/log.jsonl").read_bytes() == log
    assert sorted(os.listdir(out / "promoter")) == files

    # another configuration and other rows are other runs; what else is in the file stays
    one = f"--tasks={tasks}/core*.train.json"
    run_classify(toy, tasks, out, "--resume", one, "--max_steps=1")
    again = load(path)
    assert again["tasks"]["core_promoter"] != result["tasks"]["core_promoter"]
    assert again["tasks"]["promoter"] == result["tasks"]["promoter"]
    records = load(tasks / "core_promoter.test.json")
    write(tasks / "core_promoter.test.json", records[:10])
    run_classify(toy, tasks, out, "--resume", one, "--max_steps=1")
    assert load(path)["tasks"]["core_promoter"]["n"] == 10


def test_a_classifier_of_both_strands(monkeypatch):
    """More rows to train on, and the sum of both strands' probabilities, for either_strand rows"""
    tok, trained = Tokenizer.train([], 257), []
    a, = tok.encode("A")
    monkeypatch.setattr(classify, "tune",
                        lambda model, train, *rest: trained.append(train) or model)
    monkeypatch.setattr(classify, "probabilities", lambda model, rows, *rest: np.array(
        [[1, 0] if row.prompt[1] == a else [0, 0.9] for row in rows]))
    model = GPT(GPTConfig(257, 40, 1, 1, 4))
    record = {"task": "t", "instruction": "Which?", "input": "CAAAAAAAAT", "choices": ["a", "b"]}
    either, one = record | {"output": "a", "either_strand": True}, record | {"output": "b"}

    # CAAAAAAAAT is taken for b, ATTTTTTTTG for a, and that with more confidence
    accuracy = []
    for both in (False, True):
        cfg = classify.ClassifyConfig(both_strands=both, val_fraction=0.3)
        scores = classify.classify(model, tok, [either, one] * 5, [either, one], cfg, CPU, {})
        accuracy.append(scores["accuracy"])
    assert accuracy == [0.5, 1.0]
    plain, more = trained
    assert len(plain) == 7 and not any(row.prompt[1] == a for row in plain)
    turned = [row for row in more if row.prompt[1] == a]
    assert len(turned) == len(more) - 7 == sum(row.response[0] == 0 for row in plain) > 0
    assert all(row.response[0] == 0 for row in turned)


def test_classify_refusals(toy, tasks, tmp_path):
    for arg, message in [("--epochs=0", "a classifier has to be trained"),
                         (f"--eval_tasks={tasks}/tf.test.json", "no task with choices that is in")]:
        with pytest.raises(ValueError, match=message):
            run_classify(toy, tasks, tmp_path / "out", arg)
    assert not os.path.exists(tmp_path / "out")


# -- the time of a step

def test_step_reports_where_the_time_goes(toy, monkeypatch, capsys):
    monkeypatch.setattr(step, "matmul_flops", lambda machine: 1e11)
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
    args = merge(*SMALL, f"--data_dir={toy}/data", "--max_steps=6", "--grad_clip=0.5",
                 "--gradient_accumulation_steps=2")
    train.main([*args, f"--out_dir={tmp_path}/out"])
    model = step.bench(config.from_command_line(step.StepConfig, "train", args))
    expected = load_checkpoint(f"{tmp_path}/out/last.pt")[1]["model"]
    found = model.state_dict()
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[key], expected[key]) for key in found)


@pytest.mark.parametrize("name", ["logits", "residual"])
def test_what_is_undone_computes_the_same(name, monkeypatch):
    """Only the residual stream's dtype is another one, and that there are logits."""
    monkeypatch.setattr(GPT, "embed", GPT.embed)        # so that they come back afterwards
    monkeypatch.setattr(GPT, "forward", GPT.forward)
    model = GPT(GPTConfig(vocab_size=61, block_size=32, n_layer=1, n_head=2, n_embd=16))
    idx = torch.arange(40).view(2, 20)
    with torch.autocast("cpu", torch.bfloat16):
        before, dtype = model(idx, idx)[1], model.embed(idx, idx[:1]).dtype
        step.undo([name])
        logits, loss = model(idx, idx)
        assert (logits is not None) == (name == "logits") and dtype == torch.bfloat16
        assert (model.embed(idx, idx[:1]).dtype == torch.float32) == (name == "residual")
    torch.testing.assert_close(loss, before, rtol=2e-3, atol=0)


def test_step_beside_another_checkout(toy, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(step, "ROUNDS", 1)
    (tmp_path / "bench").mkdir()
    (tmp_path / "bench/step.py").write_text(
        "import sys\nassert sys.argv[1:] == ['--n_layer=1']\n"
        "print('9 tokens/s, 1,000.0 ms per step of 9 tokens')\n")
    with pytest.raises(ValueError, match="meta.json: no such file"):
        step.main([f"--data_dir={tmp_path}/none", f"--vs={tmp_path}"])
    with pytest.raises(ValueError, match="no checkout that has bench/step.py"):
        step.main([f"--vs={toy}"])
    monkeypatch.setattr(step, "ROOT", str(tmp_path / "ours"))
    shutil.copytree(tmp_path / "bench", tmp_path / "ours/bench")
    ours = tmp_path / "ours/bench/step.py"
    ours.write_text(ours.read_text().replace("1,000.0", "1,250.0"))
    step.main(["--n_layer=1", f"--vs={tmp_path}"])
    first, second, ratio = capsys.readouterr().out.splitlines()
    assert first.split() == ["1,250.0", "ms", "per", "step", f"{tmp_path}/ours"]
    assert second.split() == ["1,000.0", "ms", "per", "step", str(tmp_path)]
    assert ratio.split()[0] == "1.250"


# -- beside padding, and beside transformers

def test_vs_padding(toy, monkeypatch, capsys):
    monkeypatch.setattr(vs_padding, "ROUNDS", 2)
    vs_padding.main([*RUN, f"--init_from={toy}/out", f"--tasks={toy}/data/tasks/*.train.json"])
    tuning, scoring = capsys.readouterr().out.splitlines()[-2:]
    for line, what in ((tuning, "padded to 256"), (scoring, "a row per choice")):
        assert what in line
        ours, theirs, ratio = (float(x.replace(",", "")) for x in re.findall(
            r"([\d,.]+) rows/s, beside ([\d,.]+) rows/s: ([\d.]+) times", line)[0])
        assert ratio == pytest.approx(ours / theirs, rel=0.1) and ratio > 1


def test_both_ways_of_scoring_agree(toy):
    """Or the comparison would mean nothing"""
    model, _ = load_checkpoint(f"{toy}/out/best.pt")
    tok = Tokenizer.load(f"{toy}/out/tokenizer.json")
    records = read_tasks([f"{toy}/data/tasks/tf.test.json"])[:2]
    rows = encode_rows(records, tok, 256, 240)
    prompts = [row.prompt.tolist() for row in rows]
    choices = [tok.encode(c) + [tok.eot] for c in records[0]["choices"]]
    found = model.log_likelihoods(prompts, choices)[0]
    for i, prompt in enumerate(prompts):
        for j, choice in enumerate(choices):
            alone = vs_padding.score_alone(model, prompt, choice, CPU)
            assert found[i, j].item() == pytest.approx(alone, abs=1e-3)


def test_vs_transformers(toy, monkeypatch, capsys):
    pytest.importorskip("transformers")
    monkeypatch.setattr(vs_transformers, "STEPS", 2)
    args = [*SMALL, f"--data_dir={toy}/data"]
    cfg = config.from_command_line(TrainConfig, "train", args)
    for make in vs_transformers.MAKERS.values():
        assert 0 < vs_transformers.measure(make, cfg) < 10
    seconds = {"nanoDNAHLM": iter("135"), "transformers": iter("678")}
    monkeypatch.setattr(vs_transformers, "run_worker",
                        lambda command: f"compiling\n{next(seconds[command[3]])}\n")
    capsys.readouterr()
    vs_transformers.main(args)
    ours, theirs = capsys.readouterr().out.splitlines()
    assert re.fullmatch(r"nanoDNAHLM +341 tokens/s, 3,000.0 ms per step, 2.33 times .*", ours)
    assert theirs.endswith("7,000.0 ms per step, 1.00 times as fast as transformers")
